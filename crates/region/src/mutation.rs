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
pub use enabled::{on, set};

#[cfg(feature = "mutations")]
mod enabled {
    use std::cell::{Cell, RefCell};

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

    #[cfg(test)]
    mod tests {
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
