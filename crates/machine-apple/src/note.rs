//! What must be known of a saved state besides its bytes.

use crate::plan::Plan;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use slicer_machine::MachineError;

/// Goes with a saved state; see [`slicer_machine::Machine::save`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    /// The machine's identifier, in base64: the framework restores a state into that machine only.
    identifier: String,
    /// What the guest saw of its machine, see [`Plan::hardware`].
    hardware: Vec<String>,
    /// The version of macOS that wrote it, for errors: whether another one can read it, it tells.
    macos: String,
}

impl Note {
    pub(crate) fn new(plan: &Plan, macos: &str) -> Self {
        Self {
            identifier: STANDARD.encode(&plan.identifier),
            hardware: plan.hardware(),
            macos: macos.to_owned(),
        }
    }

    pub(crate) fn read(vm: &str, text: &str) -> Result<Self, MachineError> {
        serde_json::from_str(text).map_err(|e| incompatible(vm, format!("its note is torn: {e}")))
    }

    pub(crate) fn write(&self) -> String {
        // Strings alone: this can't fail, and an empty note would be refused.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// The identifier of the machine that was saved.
    pub(crate) fn identifier(&self, vm: &str) -> Result<Vec<u8>, MachineError> {
        STANDARD
            .decode(&self.identifier)
            .map_err(|e| incompatible(vm, format!("its note is torn: {e}")))
    }

    /// Refuses a state that is of another machine than `plan` makes.
    pub(crate) fn check(&self, vm: &str, plan: &Plan) -> Result<(), MachineError> {
        let now = plan.hardware();
        let gone = self.hardware.iter().find(|h| !now.contains(h));
        let new = now.iter().find(|h| !self.hardware.contains(h));
        let why = match (gone, new) {
            (None, None) => return Ok(()),
            (Some(gone), Some(new)) => format!("its machine had {gone}, and now has {new}"),
            (Some(gone), None) => format!("its machine had {gone}, and no longer has"),
            (None, Some(new)) => format!("its machine now has {new}"),
        };
        Err(incompatible(vm, why))
    }

    /// What to say besides when the framework refuses the state.
    pub(crate) fn context(&self, macos: &str) -> String {
        if self.macos == macos {
            String::new()
        } else {
            format!(" ({} wrote it, and this is {macos})", self.macos)
        }
    }
}

pub(crate) fn incompatible(vm: &str, why: String) -> MachineError {
    MachineError::Incompatible {
        vm: vm.to_owned(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::scripted::{host, spec};

    fn plan() -> Plan {
        Plan::new(&spec("slicer-1"), &host(), vec![0, 255, 7]).unwrap()
    }

    #[test]
    fn a_note_brings_back_the_machine() {
        let note = Note::new(&plan(), "macOS 15.5");
        let read = Note::read("slicer-1", &note.write()).unwrap();
        assert_eq!(read, note);
        assert_eq!(read.identifier("slicer-1").unwrap(), [0, 255, 7]);
        read.check("slicer-1", &plan()).unwrap();
        assert_eq!(read.context("macOS 15.5"), "");
        assert!(read.context("macOS 26.0").contains("macOS 15.5 wrote it"));
    }

    #[test]
    fn another_machine_is_told_by_what_differs() {
        let note = Note::new(&plan(), "");
        let mut other = plan();
        other.cpus = 4;
        let text = note.check("slicer-1", &other).unwrap_err().to_string();
        assert!(text.contains("had 2 CPUs, and now has 4 CPUs"), "{text}");
        let mut other = plan();
        other.shares.clear();
        let text = note.check("slicer-1", &other).unwrap_err().to_string();
        assert!(text.contains("a share home, and no longer has"), "{text}");
    }

    #[test]
    fn a_torn_note_is_no_note() {
        let whole = Note::new(&plan(), "").write();
        for text in ["", "{}", &whole[..whole.len() - 1]] {
            let e = Note::read("slicer-1", text).unwrap_err();
            assert!(matches!(e, MachineError::Incompatible { .. }), "{e}");
        }
        let mangled = whole.replace(&STANDARD.encode([0, 255, 7]), "!");
        let note = Note::read("slicer-1", &mangled).unwrap();
        assert!(note.identifier("slicer-1").is_err());
    }
}
