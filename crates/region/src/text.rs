//! Text of others, which is shown to people.

/// Whether a character may steer whoever reads it: a control character; or what has no width, breaks a line, or turns the direction of writing
/// around.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{2069}' | '\u{feff}')
}

/// The text with `instead` of all that [`steers`].
pub fn printable(text: &str, instead: char) -> String {
    text.chars().map(|c| if steers(c) { instead } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_is_replaced() {
        assert_eq!(printable("a\u{1b}[2Jb\u{202e}c\nd\u{2028}e\u{feff}é", ' '), "a [2Jb c d e é");
    }
}
