//! What a click asks for.

use std::fmt;
use std::str::FromStr;

/// What an item of the menu stands for. Its text form is the item's id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Open a terminal with a shell in this VM.
    Shell(String),
    /// Open a terminal whose `docker` works with the VM's Docker.
    DockerShell,
    /// Shut the VM down and start it again.
    Restart,
    /// Start the VM, which is off.
    Start,
    /// Let the VM run on, which is paused.
    Resume,
    /// Let the VM run on, which is on disk.
    Restore,
    /// Shut the VM down.
    ShutDown,
    /// Start the VM with a fresh disk.
    Reset,
    /// Open a terminal with what the VM's serial console said.
    Log,
    /// Forward the Docker socket, or no longer.
    Docker,
    /// Delete this sandbox.
    Delete(String),
    /// End the tray.
    Quit,
}

impl Action {
    /// The name of the action and the VM it is for, where the menu has it for several.
    fn parts(&self) -> (&'static str, Option<&str>) {
        match self {
            Self::Shell(vm) => ("shell", Some(vm)),
            Self::DockerShell => ("docker-shell", None),
            Self::Restart => ("restart", None),
            Self::Start => ("start", None),
            Self::Resume => ("resume", None),
            Self::Restore => ("restore", None),
            Self::ShutDown => ("shut-down", None),
            Self::Reset => ("reset", None),
            Self::Log => ("log", None),
            Self::Docker => ("docker", None),
            Self::Delete(vm) => ("delete", Some(vm)),
            Self::Quit => ("quit", None),
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.parts() {
            (name, Some(vm)) => write!(f, "{name}:{vm}"),
            (name, None) => f.write_str(name),
        }
    }
}

impl FromStr for Action {
    /// No item that does anything has this id.
    type Err = ();

    fn from_str(id: &str) -> Result<Self, ()> {
        Ok(match id.split_once(':') {
            Some(("shell", vm)) => Self::Shell(vm.to_owned()),
            Some(("delete", vm)) => Self::Delete(vm.to_owned()),
            Some(_) => return Err(()),
            None => match id {
                "docker-shell" => Self::DockerShell,
                "restart" => Self::Restart,
                "start" => Self::Start,
                "resume" => Self::Resume,
                "restore" => Self::Restore,
                "shut-down" => Self::ShutDown,
                "reset" => Self::Reset,
                "log" => Self::Log,
                "docker" => Self::Docker,
                "quit" => Self::Quit,
                _ => return Err(()),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_read_back() {
        for action in [
            Action::Shell("slicer-1".into()),
            Action::DockerShell,
            Action::Restart,
            Action::Start,
            Action::Resume,
            Action::Restore,
            Action::ShutDown,
            Action::Reset,
            Action::Log,
            Action::Docker,
            Action::Delete("sbox-1".into()),
            Action::Quit,
        ] {
            assert_eq!(action.to_string().parse(), Ok(action));
        }
        for none in ["", "shell", "1001", "quit:x"] {
            assert_eq!(none.parse::<Action>(), Err(()), "{none}");
        }
    }
}
