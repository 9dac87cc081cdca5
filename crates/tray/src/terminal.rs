//! Which program shows a shell, and how it is told which.

use crate::quote;
use std::path::Path;

/// A program and its arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Argv {
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
}

impl Argv {
    pub(crate) fn new<'a>(program: &str, args: impl IntoIterator<Item = &'a str>) -> Self {
        Self {
            program: program.to_owned(),
            args: args.into_iter().map(str::to_owned).collect(),
        }
    }
}

/// The systems whose terminals differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum System {
    Mac,
    Linux,
}

impl System {
    /// The one this runs on.
    pub(crate) const HERE: Self = if cfg!(target_os = "macos") {
        Self::Mac
    } else {
        Self::Linux
    };
}

/// How a terminal takes the command it shall run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// Terminal.app, by AppleScript.
    AppleTerminal,
    /// iTerm, by AppleScript.
    ITerm,
    /// As the arguments after these.
    After(&'static [&'static str]),
}

/// A terminal emulator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Terminal {
    /// What is run, or, of a Mac's application, opened.
    program: String,
    way: Way,
    /// A Mac's application, which `open` finds and starts.
    application: bool,
}

/// A name no terminal of this system goes by.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TerminalError {
    /// AppleScript is for Macs.
    #[error("{0} is there on Macs only: give another --terminal")]
    MacOnly(String),
    /// Nothing was named.
    #[error("--terminal is empty: name a terminal, such as xterm")]
    Empty,
}

impl Terminal {
    /// The terminal of a name, such as `ghostty`, `iTerm.app` or `/opt/bin/kitty`. One that isn't
    /// known is taken to be like xterm, as most are.
    pub(crate) fn named(name: &str, system: System) -> Result<Self, TerminalError> {
        let name = name.trim();
        let file = Path::new(name).file_name().and_then(|f| f.to_str());
        let file = file.ok_or(TerminalError::Empty)?.to_lowercase();
        let short = file.strip_suffix(".app").unwrap_or(&file);
        let mac_only = || TerminalError::MacOnly(name.to_owned());
        let on_mac = |way| match system {
            System::Mac => Ok(way),
            System::Linux => Err(mac_only()),
        };
        let (application, way) = match short {
            "terminal" => (Some("Terminal"), on_mac(Way::AppleTerminal)?),
            "iterm" | "iterm2" => (Some("iTerm"), on_mac(Way::ITerm)?),
            "ghostty" => (Some("Ghostty"), Way::After(&["-e"])),
            "kitty" => (Some("kitty"), Way::After(&[])),
            "alacritty" => (Some("Alacritty"), Way::After(&["-e"])),
            "wezterm" => (Some("WezTerm"), Way::After(&["start", "--"])),
            "foot" => (None, Way::After(&[])),
            "gnome-terminal" | "kgx" | "ptyxis" => (None, Way::After(&["--"])),
            "xfce4-terminal" => (None, Way::After(&["-x"])),
            _ => (None, Way::After(&["-e"])),
        };
        // A Mac's applications are not on the path.
        let application = application.filter(|_| system == System::Mac && !name.contains('/'));
        Ok(Self {
            program: application.unwrap_or(name).to_owned(),
            way,
            application: application.is_some(),
        })
    }

    /// The terminal nobody has chosen: Terminal.app, or on Linux what `TERMINAL` says or Debian's
    /// alternatives.
    pub(crate) fn default_name(system: System, variable: Option<&str>) -> String {
        match (system, variable) {
            (System::Mac, _) => "Terminal".to_owned(),
            (System::Linux, Some(name)) if !name.trim().is_empty() => name.to_owned(),
            (System::Linux, _) => "x-terminal-emulator".to_owned(),
        }
    }

    /// What opens a window of it that runs this script, of a POSIX shell.
    pub(crate) fn run(&self, script: &str) -> Argv {
        // Who types it to whatever shell the user has needs it in one word.
        let line = format!("exec {}", quote::sh_line(["/bin/sh", "-c", script]));
        match self.way {
            Way::AppleTerminal => osascript(&[
                "tell application \"Terminal\"".to_owned(),
                format!("do script {}", quote::apple(&line)),
                "activate".to_owned(),
                "end tell".to_owned(),
            ]),
            Way::ITerm => osascript(&[
                "tell application \"iTerm\"".to_owned(),
                "set opened to (create window with default profile)".to_owned(),
                format!(
                    "tell current session of opened to write text {}",
                    quote::apple(&line)
                ),
                "activate".to_owned(),
                "end tell".to_owned(),
            ]),
            Way::After(words) => {
                let open = ["-n", "-a", &self.program, "--args"];
                let (program, first) = if self.application {
                    ("open", &open[..])
                } else {
                    (self.program.as_str(), &[][..])
                };
                let command = ["/bin/sh", "-c", script];
                let args = first.iter().chain(words).chain(&command);
                Argv::new(program, args.copied())
            }
        }
    }
}

/// What runs these lines of AppleScript.
pub(crate) fn osascript(lines: &[String]) -> Argv {
    Argv::new(
        "osascript",
        lines.iter().flat_map(|line| ["-e", line.as_str()]),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCRIPT: &str = "slicer vm shell slicer-1; echo 'it is \"over\"'";

    fn words(name: &str, system: System) -> Vec<String> {
        let argv = Terminal::named(name, system).unwrap().run(SCRIPT);
        [vec![argv.program], argv.args].concat()
    }

    #[test]
    fn each_terminal_of_linux_is_told_in_its_own_way() {
        for (name, first) in [
            ("xterm", &["xterm", "-e"][..]),
            ("x-terminal-emulator", &["x-terminal-emulator", "-e"]),
            ("/usr/bin/ghostty", &["/usr/bin/ghostty", "-e"]),
            ("kitty", &["kitty"]),
            ("alacritty", &["alacritty", "-e"]),
            ("wezterm", &["wezterm", "start", "--"]),
            ("gnome-terminal", &["gnome-terminal", "--"]),
            ("xfce4-terminal", &["xfce4-terminal", "-x"]),
            ("konsole", &["konsole", "-e"]),
        ] {
            let expected = [first, &["/bin/sh", "-c", SCRIPT]].concat();
            assert_eq!(words(name, System::Linux), expected, "{name}");
        }
    }

    #[test]
    fn a_mac_opens_applications() {
        for (name, first) in [
            (
                "ghostty",
                &["open", "-n", "-a", "Ghostty", "--args", "-e"][..],
            ),
            ("kitty.app", &["open", "-n", "-a", "kitty", "--args"]),
            (
                "Alacritty",
                &["open", "-n", "-a", "Alacritty", "--args", "-e"],
            ),
            (
                "wezterm",
                &["open", "-n", "-a", "WezTerm", "--args", "start", "--"],
            ),
            ("/opt/homebrew/bin/kitty", &["/opt/homebrew/bin/kitty"]),
            ("xterm", &["xterm", "-e"]),
        ] {
            let expected = [first, &["/bin/sh", "-c", SCRIPT]].concat();
            assert_eq!(words(name, System::Mac), expected, "{name}");
        }
    }

    #[test]
    fn apples_are_scripted() {
        let typed =
            r#""exec /bin/sh -c 'slicer vm shell slicer-1; echo '\\''it is \"over\"'\\'''""#;
        let script = |name: &str| words(name, System::Mac).join(" ");
        assert_eq!(
            script("Terminal.app"),
            format!(
                "osascript -e tell application \"Terminal\" -e do script {typed} -e activate -e end tell"
            )
        );
        assert_eq!(
            script("iTerm2"),
            format!(
                "osascript -e tell application \"iTerm\" -e set opened to (create window with \
                 default profile) -e tell current session of opened to write text {typed} -e \
                 activate -e end tell"
            )
        );
    }

    #[test]
    fn defaults_and_refusals() {
        let default = Terminal::default_name;
        assert_eq!(default(System::Mac, Some("kitty")), "Terminal");
        assert_eq!(default(System::Linux, Some("kitty")), "kitty");
        assert_eq!(default(System::Linux, Some("")), "x-terminal-emulator");
        assert_eq!(
            Terminal::named("iTerm", System::Linux),
            Err(TerminalError::MacOnly("iTerm".into()))
        );
        assert_eq!(
            Terminal::named(" ", System::Linux),
            Err(TerminalError::Empty)
        );
    }
}
