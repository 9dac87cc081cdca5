//! A host whose programs answer by a script, for tests.

use super::{Call, Done, Runner, ServiceError};
use async_trait::async_trait;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

/// Calls that are expected, in their order, and how each is answered.
#[derive(Debug, Clone, Default)]
pub(crate) struct Script(Arc<Mutex<VecDeque<(String, Done)>>>);

impl Script {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Expects this line next, which prints that and exits with that.
    pub(crate) fn answer(&self, line: &str, code: i32, stdout: &str) -> &Self {
        let done = Done {
            code,
            stdout: stdout.to_owned(),
            stderr: String::new(),
        };
        self.0.lock().unwrap().push_back((line.to_owned(), done));
        self
    }

    /// Expects these lines, which succeed and print nothing.
    pub(crate) fn succeed(&self, lines: &[&str]) -> &Self {
        for line in lines {
            self.answer(line, 0, "");
        }
        self
    }

    /// Checks that all that was expected has been called.
    pub(crate) fn is_over(&self) {
        let rest = self.0.lock().unwrap();
        assert!(rest.is_empty(), "never called: {rest:?}");
    }
}

#[async_trait]
impl Runner for Script {
    async fn run(&self, call: &Call) -> Result<Done, ServiceError> {
        let next = self.0.lock().unwrap().pop_front();
        let Some((line, done)) = next else {
            panic!("called at the script's end: {}", call.line());
        };
        assert_eq!(call.line(), line);
        Ok(done)
    }
}
