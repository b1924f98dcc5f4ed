//! Named mistakes that tests can switch on, to prove that the simulator or a loom model would notice them.
//!
//! Only with the feature `mutations`, which only development crates ask for; without it [`on`] is a constant `false` and
//! the mistakes are not compiled. Per thread, so that mutated and honest runs go side by side.

/// Whether this mistake is to be made now.
#[cfg(not(feature = "mutations"))]
#[inline(always)]
pub fn on(_name: &str) -> bool {
    false
}

#[cfg(feature = "mutations")]
pub use enabled::{all, on, set, tell};

#[cfg(feature = "mutations")]
mod enabled {
    use std::any::Any;
    use std::cell::{Cell, RefCell};
    use std::panic::{AssertUnwindSafe, catch_unwind};

    thread_local! {
        static ANY: Cell<bool> = const { Cell::new(false) };
        static NAMES: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
    }

    /// Whether this mistake is to be made now, on this thread.
    pub fn on(name: &str) -> bool {
        ANY.get() && NAMES.with_borrow(|names| names.iter().any(|n| n == name))
    }

    /// From now on this thread makes exactly these mistakes.
    pub fn set(names: &[&str]) {
        ANY.set(!names.is_empty());
        NAMES.with_borrow_mut(|all| *all = names.iter().map(|n| (*n).to_owned()).collect());
    }

    /// The mistakes that this thread makes: for another one that is to make them, too.
    pub fn all() -> Vec<String> {
        NAMES.with_borrow(Vec::clone)
    }

    /// Tells a directed schedule honestly, and then once for each mistake `(name, words)`: honestly it must end well; with the
    /// mistake it must end in a panic that says these words, so that it is noticed for what it does and not by accident.
    /// `"a + b"` makes two mistakes at once, for rules that stand behind each other.
    ///
    /// # Panics
    /// When one of these is not so.
    pub fn tell(mistakes: &[(&str, &str)], story: impl Fn()) {
        set(&[]);
        story();
        for (mistake, words) in mistakes {
            set(&mistake.split(" + ").collect::<Vec<_>>());
            let end = catch_unwind(AssertUnwindSafe(&story));
            set(&[]);
            let said = end.err().unwrap_or_else(|| panic!("`{mistake}` goes unnoticed"));
            assert!(text_of(&*said).contains(words), "`{mistake}` is noticed by accident: {}", text_of(&*said));
        }
    }

    fn text_of(panic: &(dyn Any + Send)) -> &str {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without words")
    }

    #[cfg(test)]
    mod tests {
        use std::panic::catch_unwind;

        #[test]
        fn a_story_must_end_well_without_its_mistake_and_with_the_right_words_with_it() {
            let story = || assert!(!super::on("a"), "L2: gone");
            super::tell(&[("a", "L2")], story);
            assert!(catch_unwind(|| super::tell(&[("a", "L3")], story)).is_err(), "another reason");
            assert!(catch_unwind(|| super::tell(&[("b", "L2")], story)).is_err(), "nothing happens");
            assert!(catch_unwind(|| super::tell(&[], || panic!("L2"))).is_err(), "honestly told");
            assert!(!super::on("a"));
        }

        #[test]
        fn a_mistake_is_made_only_when_named_and_only_on_its_thread() {
            super::set(&["save without claim"]);
            assert!(super::on("save without claim") && !super::on("clear without flush"));
            std::thread::spawn(|| assert!(!super::on("save without claim"))).join().expect("no panic");
            super::set(&[]);
            assert!(!super::on("save without claim"));
        }
    }
}
