use super::*;
use crate::service::script::Script;
use crate::service::{Launchd, Systemd};
use std::os::unix::net::UnixListener;

const CONFIG_TEXT: &str = "config:
  image: x:1
  hypervisor: @HYPERVISOR@
  host_groups:
    - name: sbox
      count: 0
";

/// A home with programs and a configuration in `slicer-mac`, and a script for what is called.
struct Home {
    temp: tempfile::TempDir,
    script: Script,
    said: Vec<String>,
}

impl Home {
    fn new() -> Self {
        let temp = tempfile::Builder::new().prefix("sv").tempdir().unwrap();
        let this = Self {
            temp,
            script: Script::new(),
            said: Vec::new(),
        };
        let dir = this.dir();
        fs::create_dir(&dir).unwrap();
        fs::write(dir.join("slicer-mac"), "").unwrap();
        let hypervisor = crate::config::Host::current().os.hypervisor().name();
        let text = CONFIG_TEXT.replace("@HYPERVISOR@", hypervisor);
        fs::write(dir.join(CONFIG), text).unwrap();
        this
    }

    fn home(&self) -> PathBuf {
        self.temp.path().canonicalize().unwrap()
    }

    fn dir(&self) -> PathBuf {
        self.home().join("slicer-mac")
    }

    fn systemd(&self) -> Systemd<Script> {
        let config = self.home().join(".config");
        Systemd::new("alex".to_owned(), &config, None, self.script.clone())
    }

    fn launchd(&self) -> Launchd<Script> {
        Launchd::new(501, &self.home(), self.script.clone())
    }

    fn wanted(&self, os: HostOs, tray: bool) -> Installation {
        Installation {
            program: self.dir().join("slicer-mac"),
            directory: self.dir(),
            tray,
            os,
            variable: |_| None,
        }
    }

    async fn install(
        &mut self,
        manager: &dyn Manager,
        wanted: &Installation,
    ) -> Result<(), String> {
        self.said.clear();
        let said = &mut self.said;
        let done = install(manager, wanted, &mut |line| said.push(line.to_owned())).await;
        done.map_err(|e| e.to_string())
    }

    /// What was said, less the home's path.
    fn said(&self) -> String {
        let home = self.home().display().to_string();
        self.said.join("\n").replace(&home, "~")
    }
}

fn show(service: &str) -> String {
    format!(
        "systemctl --user show --property=ActiveState,SubState,MainPID,ExecMainCode,\
         ExecMainStatus,WorkingDirectory {service}"
    )
}

const UP: &str = "ActiveState=active\nSubState=running\nMainPID=12\nExecMainCode=0\n";
const DOWN: &str = "ActiveState=inactive\nSubState=dead\nMainPID=0\nExecMainCode=0\n";
const FAILING: &str = "ActiveState=activating\nSubState=auto-restart\nMainPID=0\nExecMainCode=1\n\
                       ExecMainStatus=1\n";
const LINGER: &str = "loginctl show-user alex --property=Linger --value";
const CHECK: &str = "systemctl --user show --property=Version";

#[tokio::test]
async fn on_linux_from_installing_to_removing() {
    let mut home = Home::new();
    let (systemd, script) = (home.systemd(), home.script.clone());
    let show = show("slicer-daemon.service");
    let _api = UnixListener::bind(home.dir().join("slicer.sock")).unwrap();
    script
        .succeed(&[CHECK])
        .answer(&show, 0, DOWN)
        .succeed(&[
            "systemctl --user daemon-reload",
            "systemctl --user --quiet enable slicer-daemon.service",
            "systemctl --user --quiet reset-failed slicer-daemon.service",
            "systemctl --user start slicer-daemon.service",
        ])
        .answer(&show, 0, UP)
        .answer(LINGER, 0, "no\n");
    let mut wanted = home.wanted(HostOs::Linux, true);
    home.install(&systemd, &wanted).await.unwrap();
    script.is_over();
    assert_eq!(
        home.said(),
        "daemon: installed, running (pid 12) in ~/slicer-mac\n\
         tray: not installed, for there is no slicer-tray beside ~/slicer-mac/slicer-mac\n\
         logs: slicer-mac service logs daemon (the journal, journalctl \
         --user-unit=slicer-daemon.service)\n\
         note: services end when you log out, and the VMs with them; `sudo loginctl enable-linger \
         alex` keeps them, from boot on"
    );
    let unit = systemd.definition(Service::Daemon);
    let text = fs::read_to_string(&unit).unwrap();
    let program = home.dir().join("slicer-mac");
    assert!(text.contains(&format!("ExecStart=\":{}\" \"up\"", program.display())));

    // Again: nothing to do.
    script
        .succeed(&[CHECK])
        .answer(&show, 0, UP)
        .answer(LINGER, 0, "yes\n");
    home.install(&systemd, &wanted).await.unwrap();
    script.is_over();
    let said = home.said();
    assert!(
        said.starts_with("daemon: installed already, running (pid 12)"),
        "{said}"
    );
    assert!(!said.contains("note:"), "{said}");

    // The program moved.
    let moved = home.home().join("bin");
    fs::create_dir(&moved).unwrap();
    fs::rename(&program, moved.join("slicer-mac")).unwrap();
    wanted.program = moved.join("slicer-mac");
    script
        .succeed(&[CHECK])
        .answer(&show, 0, UP)
        .succeed(&[
            "systemctl --user stop slicer-daemon.service",
            "systemctl --user daemon-reload",
            "systemctl --user --quiet enable slicer-daemon.service",
            "systemctl --user --quiet reset-failed slicer-daemon.service",
            "systemctl --user start slicer-daemon.service",
        ])
        .answer(&show, 0, &UP.replace("12", "13"))
        .answer(LINGER, 0, "yes\n");
    home.install(&systemd, &wanted).await.unwrap();
    script.is_over();
    let said = home.said();
    assert!(
        said.starts_with(
            "daemon: stopping the one that is installed\ndaemon: updated, running (pid 13)"
        ),
        "{said}"
    );
    assert!(
        fs::read_to_string(&unit)
            .unwrap()
            .contains("/bin/slicer-mac\"")
    );

    script.succeed(&[CHECK]).answer(&show, 0, UP).succeed(&[
        "systemctl --user stop slicer-daemon.service",
        "systemctl --user --quiet disable slicer-daemon.service",
        "systemctl --user daemon-reload",
        "systemctl --user --quiet reset-failed slicer-daemon.service",
    ]);
    let mut said = Vec::new();
    let mut say = |line: &str| said.push(line.to_owned());
    uninstall(&systemd, &mut say).await.unwrap();
    script.is_over();
    assert_eq!(said, ["tray: not installed", "daemon: removed"]);
    assert!(!unit.exists() && home.dir().join(CONFIG).exists());
}

#[tokio::test]
async fn on_a_mac_with_the_tray_and_then_without() {
    let mut home = Home::new();
    let (launchd, script) = (home.launchd(), home.script.clone());
    fs::write(home.dir().join("slicer-tray"), "").unwrap();
    let _api = UnixListener::bind(home.dir().join("slicer.sock")).unwrap();
    let print = "launchctl print gui/501/dev.slicer.daemon";
    let print_tray = "launchctl print gui/501/dev.slicer.tray";
    let running = include_str!("../golden/print-running.txt");
    let agents = home.home().join("Library/LaunchAgents");
    let bootstrap = |label: &str| {
        let file = agents.join(format!("{label}.plist"));
        format!("launchctl bootstrap gui/501 {}", file.display())
    };
    script
        .succeed(&["launchctl print gui/501"])
        .answer(print, 113, "")
        .succeed(&["launchctl enable gui/501/dev.slicer.daemon"])
        .answer(print, 113, "")
        .succeed(&[&bootstrap("dev.slicer.daemon")])
        .answer(print, 0, running)
        .answer(print_tray, 113, "")
        .succeed(&["launchctl enable gui/501/dev.slicer.tray"])
        .answer(print_tray, 113, "")
        .succeed(&[&bootstrap("dev.slicer.tray")])
        // launchd has not started it yet.
        .answer(
            print_tray,
            0,
            "x = {\n\tstate = spawn scheduled\n\tlast exit code = (never exited)\n}",
        )
        .answer(print_tray, 0, running);
    let wanted = home.wanted(HostOs::MacOs, true);
    home.install(&launchd, &wanted).await.unwrap();
    script.is_over();
    assert_eq!(
        home.said(),
        "daemon: installed, running (pid 4711) in ~/slicer-mac\n\
         tray: installed, running (pid 4711) in ~/slicer-mac\n\
         logs: slicer-mac service logs daemon (~/slicer-mac/logs/daemon.log)"
    );

    script
        .succeed(&["launchctl print gui/501"])
        .answer(print, 0, running)
        .answer(print_tray, 0, running)
        .answer(print_tray, 0, running)
        .succeed(&["launchctl bootout gui/501/dev.slicer.tray"])
        .answer(print_tray, 113, "");
    let wanted = home.wanted(HostOs::MacOs, false);
    home.install(&launchd, &wanted).await.unwrap();
    script.is_over();
    assert!(home.said().contains("tray: removed"), "{}", home.said());
    assert!(!launchd.definition(Service::Tray).exists());
    assert!(launchd.definition(Service::Daemon).exists());
}

#[tokio::test]
async fn what_cannot_work_is_refused_before_anything_is_done() {
    let mut home = Home::new();
    let systemd = home.systemd();
    let mut wanted = home.wanted(HostOs::Linux, true);
    fs::write(home.dir().join(CONFIG), "config: 3\n").unwrap();
    let e = home.install(&systemd, &wanted).await.unwrap_err();
    assert!(e.contains("slicer-mac.yaml:1:9"), "{e}");
    fs::remove_file(home.dir().join(CONFIG)).unwrap();
    let e = home.install(&systemd, &wanted).await.unwrap_err();
    assert!(e.contains("slicer-mac new > slicer-mac.yaml"), "{e}");
    wanted.program = home.home().join("slicer-mac (deleted)");
    let e = home.install(&systemd, &wanted).await.unwrap_err();
    assert!(e.contains("run it anew"), "{e}");
    assert!(!systemd.definition(Service::Daemon).exists());
}

#[tokio::test]
async fn a_daemon_in_a_terminal_is_in_the_way() {
    let mut home = Home::new();
    let systemd = home.systemd();
    let _work = workdir::WorkDir::open(&home.dir()).unwrap();
    home.script
        .succeed(&[CHECK])
        .answer(&show("slicer-daemon.service"), 0, DOWN);
    let wanted = home.wanted(HostOs::Linux, true);
    let e = home.install(&systemd, &wanted).await.unwrap_err();
    let pid = format!("(pid {})", std::process::id());
    assert!(e.contains(&pid) && e.contains("end it first"), "{e}");
    home.script.is_over();
    assert!(!systemd.definition(Service::Daemon).exists());
}

#[tokio::test]
async fn a_daemon_that_does_not_start_is_quoted() {
    let mut home = Home::new();
    let (systemd, script) = (home.systemd(), home.script.clone());
    let show = show("slicer-daemon.service");
    script
        .succeed(&[CHECK])
        .answer(&show, 0, DOWN)
        .succeed(&[
            "systemctl --user daemon-reload",
            "systemctl --user --quiet enable slicer-daemon.service",
            "systemctl --user --quiet reset-failed slicer-daemon.service",
            "systemctl --user start slicer-daemon.service",
        ])
        .answer(&show, 0, FAILING)
        .answer(
            "journalctl --no-pager --quiet --user-unit=slicer-daemon.service --lines=20",
            0,
            "Nov 26 slicer-mac[9]: Error: no QEMU here\nNov 26 systemd[1]: Failed.\n",
        );
    let wanted = home.wanted(HostOs::Linux, false);
    let e = home.install(&systemd, &wanted).await.unwrap_err();
    assert_eq!(
        e,
        "the daemon does not start: no QEMU here\nSee `slicer-mac service logs daemon`"
    );
    script.is_over();
}

#[tokio::test]
async fn what_is_not_installed_is_not_started() {
    let home = Home::new();
    let (systemd, script) = (home.systemd(), home.script.clone());
    let show = show("slicer-daemon.service");
    script.succeed(&[CHECK, CHECK]).answer(&show, 0, DOWN);
    let e = start(&systemd, Service::Daemon, &mut |_| {})
        .await
        .unwrap_err();
    assert!(e.to_string().contains("run `slicer-mac install`"), "{e}");
    script.succeed(&[CHECK]).answer(&show, 0, DOWN);
    let e = stop(&systemd, Service::Daemon, &mut |_| {})
        .await
        .unwrap_err();
    assert!(e.to_string().contains("run `slicer-mac install`"), "{e}");
    script.is_over();
}

#[test]
fn a_definition_with_a_password_in_it_is_its_users_alone() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("a/b/x.plist");
    for (secret, mode) in [(false, 0o644), (true, 0o600)] {
        write(&file, b"x", secret).unwrap();
        assert_eq!(
            fs::metadata(&file).unwrap().permissions().mode() & 0o777,
            mode
        );
    }
}
