//! What host groups ask for when the host goes to sleep.

use super::reader::Table;
use super::report::Report;

/// What becomes of a group's VMs when the host goes to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum SleepAction {
    /// Nothing.
    #[default]
    None,
    /// The host is kept awake for as long as one of them runs.
    Prevent,
    /// They are shut down, and stay so.
    Shutdown,
    /// They are suspended, and restored when the host has woken up.
    Suspend,
}

const WORDS: [(&str, SleepAction); 4] = [
    ("none", SleepAction::None),
    ("prevent", SleepAction::Prevent),
    ("shutdown", SleepAction::Shutdown),
    ("suspend", SleepAction::Suspend),
];

/// Reads `sleep_action`.
pub(super) fn read(table: &mut Table<'_>, report: &mut Report) -> Option<SleepAction> {
    let Some(field) = table.take("sleep_action") else {
        return Some(SleepAction::None);
    };
    let text = field.text(report)?;
    if text.is_empty() {
        return Some(SleepAction::None);
    }
    let found = WORDS.into_iter().find(|(word, _)| *word == text);
    if found.is_none() {
        field.expected(report, "one of none, prevent, shutdown, suspend");
    }
    found.map(|(_, action)| action)
}
