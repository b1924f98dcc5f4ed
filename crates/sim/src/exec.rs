//! Tasks in virtual time, one step at a time, in an order that chance decides.
//!
//! The product's cores are state machines without I/O; what moves between them (the glue that is threads in the daemons) is
//! written here as small `async` tasks. Every `.await` on [`Steps::pause`] is a point where anything else may happen: other
//! tasks, a landing write, a crash. A task that waits ([`Steps::until`]) does not count as a step, so no seed is wasted on
//! polling. Wakers are not used: there is only one thread, and chance asks.

use std::cell::Cell;
use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};

use crate::rng::Rng;

/// Tells the executor whether the task it polled went on.
#[derive(Clone, Debug, Default)]
pub struct Steps(Rc<Cell<bool>>);

impl Steps {
    /// Lets anything else happen here.
    pub async fn pause(&self) {
        let mut first = true;
        std::future::poll_fn(move |_| {
            if std::mem::take(&mut first) {
                return Poll::Pending;
            }
            self.0.set(true);
            Poll::Ready(())
        })
        .await;
    }

    /// Waits for a condition. It holds when this returns: nothing comes between.
    pub async fn until(&self, mut condition: impl FnMut() -> bool) {
        std::future::poll_fn(move |_| {
            if condition() {
                self.0.set(true);
                Poll::Ready(())
            } else {
                Poll::Pending
            }
        })
        .await;
    }

    /// Waits for a value.
    pub async fn get<T>(&self, mut look: impl FnMut() -> Option<T>) -> T {
        std::future::poll_fn(move |_| match look() {
            Some(value) => {
                self.0.set(true);
                Poll::Ready(value)
            }
            None => Poll::Pending,
        })
        .await
    }
}

/// Whose a task is: it dies with its owner.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Owner(pub u64);

struct Task {
    owner: Owner,
    name: String,
    body: Pin<Box<dyn Future<Output = ()>>>,
    slow: bool,
}

/// All tasks.
#[derive(Default)]
pub struct Executor {
    tasks: Vec<Task>,
    steps: Steps,
}

impl fmt::Debug for Executor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.tasks.iter().map(|t| &t.name)).finish()
    }
}

impl Executor {
    /// What tasks wait on.
    pub fn steps(&self) -> Steps {
        self.steps.clone()
    }

    /// Adds a task.
    pub fn spawn(&mut self, owner: Owner, name: impl Into<String>, body: impl Future<Output = ()> + 'static) {
        self.tasks.push(Task { owner, name: name.into(), body: Box::pin(body), slow: false });
    }

    /// Takes the tasks of an owner away, mid-step: its process is dead. The caller drops them when nothing is borrowed.
    #[must_use]
    pub fn kill(&mut self, owner: Owner) -> Vec<Pin<Box<dyn Future<Output = ()>>>> {
        self.tasks.extract_if(.., |t| t.owner == owner).map(|t| t.body).collect()
    }

    /// Redraws which tasks are slow for a while: a stalled thread, a busy core.
    pub fn churn(&mut self, rng: &mut Rng, share: f64) {
        for task in &mut self.tasks {
            task.slow = rng.chance(share);
        }
    }

    /// Number of tasks.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// Takes one task out to be polled, beginning the search at a place that chance picks. See [`Executor::put_back`].
    fn take(&mut self, at: usize) -> Option<Task> {
        (at < self.tasks.len()).then(|| self.tasks.swap_remove(at))
    }

    fn put_back(&mut self, at: usize, task: Task) {
        let last = self.tasks.len();
        self.tasks.push(task);
        if at < last {
            self.tasks.swap(at, last);
        }
    }
}

/// One step of one task that can go on. Returns its name, or `None` when all of them wait.
///
/// The executor is borrowed only between polls, so a task may spawn others.
pub fn step(executor: &std::cell::RefCell<Executor>, rng: &std::cell::RefCell<Rng>) -> Option<String> {
    let count = executor.borrow().len();
    if count == 0 {
        return None;
    }
    let start = rng.borrow_mut().below(count);
    // Coprime strides visit every task once, in an order that differs from step to step.
    let stride = [1, 3, 5, 7, 11, 13].into_iter().filter(|s| gcd(*s, count) == 1).nth(rng.borrow_mut().below(2)).unwrap_or(1);
    let mut context = Context::from_waker(Waker::noop());
    let steps = executor.borrow().steps();
    for i in 0..count {
        let at = (start + i * stride) % count;
        let Some(mut task) = executor.borrow_mut().take(at) else { continue };
        if task.slow && rng.borrow_mut().chance(0.95) {
            executor.borrow_mut().put_back(at, task);
            continue;
        }
        steps.0.set(false);
        let done = task.body.as_mut().poll(&mut context).is_ready();
        if done {
            return Some(task.name);
        }
        let name = steps.0.get().then(|| task.name.clone());
        executor.borrow_mut().put_back(at, task);
        if name.is_some() {
            return name;
        }
    }
    None
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;

    use super::*;

    #[test]
    fn a_waiting_task_takes_no_step_and_a_killed_one_none_at_all() {
        let executor = RefCell::new(Executor::default());
        let rng = RefCell::new(Rng::new(1));
        let steps = executor.borrow().steps();
        let flag = Rc::new(Cell::new(false));
        let (f, s) = (flag.clone(), steps.clone());
        executor.borrow_mut().spawn(Owner(1), "waits", async move { s.until(|| f.get()).await });
        assert_eq!(step(&executor, &rng), None);
        let (f, s) = (flag.clone(), steps.clone());
        executor.borrow_mut().spawn(Owner(2), "sets", async move {
            s.pause().await;
            f.set(true);
        });
        let mut names = Vec::new();
        for _ in 0..6 {
            names.extend(step(&executor, &rng));
        }
        assert_eq!(names, ["sets", "waits"]);
        let s = steps.clone();
        executor.borrow_mut().spawn(Owner(3), "dies", async move { s.pause().await });
        drop(executor.borrow_mut().kill(Owner(3)));
        assert_eq!(step(&executor, &rng), None);
    }
}
