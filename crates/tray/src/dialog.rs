//! Asking whether one is sure.

use crate::quote;
use crate::terminal::{Argv, System, osascript};

/// A question before something that can't be undone.
#[derive(Debug, Clone)]
pub(crate) struct Question {
    /// What it is about.
    pub(crate) title: String,
    /// What will happen.
    pub(crate) text: String,
    /// The word on the button that does it.
    pub(crate) yes: &'static str,
}

impl Question {
    /// What asks it and succeeds only if the answer is yes. None where there is nothing to ask with;
    /// `installed` tells which programs there are.
    pub(crate) fn ask(&self, system: System, installed: impl Fn(&str) -> bool) -> Option<Argv> {
        let Self { title, text, yes } = self;
        if system == System::Mac {
            let dialog = format!(
                "display dialog {} with title {} buttons {{\"Cancel\", {yes}}} default button \
                 \"Cancel\" cancel button \"Cancel\" with icon caution",
                quote::apple(text),
                quote::apple(title),
                yes = quote::apple(yes),
            );
            return Some(osascript(&["activate".to_owned(), dialog]));
        }
        let kinds: [(&str, Vec<String>); 3] = [
            (
                "zenity",
                vec![
                    "--question".to_owned(),
                    "--no-markup".to_owned(),
                    "--default-cancel".to_owned(),
                    "--icon-name=dialog-warning".to_owned(),
                    "--width=360".to_owned(),
                    format!("--title={title}"),
                    format!("--text={text}"),
                    format!("--ok-label={yes}"),
                    "--cancel-label=Cancel".to_owned(),
                ],
            ),
            (
                "kdialog",
                vec![
                    "--title".to_owned(),
                    title.clone(),
                    "--yes-label".to_owned(),
                    (*yes).to_owned(),
                    "--no-label".to_owned(),
                    "Cancel".to_owned(),
                    "--warningyesno".to_owned(),
                    text.clone(),
                ],
            ),
            (
                "xmessage",
                vec![
                    "-center".to_owned(),
                    "-title".to_owned(),
                    title.clone(),
                    "-buttons".to_owned(),
                    format!("Cancel:1,{yes}:0"),
                    "-default".to_owned(),
                    "Cancel".to_owned(),
                    text.clone(),
                ],
            ),
        ];
        let (program, args) = kinds.into_iter().find(|(program, _)| installed(program))?;
        Some(Argv {
            program: program.to_owned(),
            args,
        })
    }
}

/// Whether a program of this name is on the path.
pub(crate) fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn question() -> Question {
        Question {
            title: "Reset slicer-1".into(),
            text: "All on \"its\" disk is lost.".into(),
            yes: "Reset",
        }
    }

    #[test]
    fn what_is_there_asks() {
        let ask = |there: &[&str]| {
            let argv = question().ask(System::Linux, |p| there.contains(&p));
            argv.map(|argv| (argv.program, argv.args))
        };
        assert_eq!(ask(&[]), None);
        let (program, args) = ask(&["xmessage", "zenity", "kdialog"]).unwrap();
        assert_eq!(program, "zenity");
        assert!(args.contains(&"--text=All on \"its\" disk is lost.".to_owned()));
        assert!(args.contains(&"--no-markup".to_owned()), "{args:?}");
        assert_eq!(ask(&["xmessage", "kdialog"]).unwrap().0, "kdialog");
        let (program, args) = ask(&["xmessage"]).unwrap();
        assert_eq!(program, "xmessage");
        assert!(args.contains(&"Cancel:1,Reset:0".to_owned()), "{args:?}");
    }

    #[test]
    fn a_mac_asks_by_a_dialog_that_fails_when_cancelled() {
        let argv = question().ask(System::Mac, |_| false).unwrap();
        assert_eq!(argv.program, "osascript");
        assert_eq!(
            argv.args,
            [
                "-e",
                "activate",
                "-e",
                "display dialog \"All on \\\"its\\\" disk is lost.\" with title \"Reset slicer-1\" \
                 buttons {\"Cancel\", \"Reset\"} default button \"Cancel\" cancel button \
                 \"Cancel\" with icon caution"
            ]
        );
    }
}
