use super::*;
use crate::config::HostOs;
use crate::service::job::tests::{nasty, plain};
use crate::service::script::Script;

const SERVICE: &str = "gui/501/dev.slicer.daemon";

/// What launchd prints of a service that runs, shortened.
const RUNNING: &str = include_str!("../golden/print-running.txt");
/// What it prints of one whose program is missing.
const FAILED: &str = include_str!("../golden/print-failed.txt");

fn launchd(home: &Path) -> (Launchd<Script>, Script) {
    let script = Script::new();
    (Launchd::new(501, home, script.clone()), script)
}

fn rendered(job: &Job) -> String {
    let (launchd, _) = launchd(Path::new("/Users/alex"));
    String::from_utf8(launchd.render(job).unwrap()).unwrap()
}

#[test]
fn property_lists_are_these() {
    for (service, golden) in [
        (
            Service::Daemon,
            include_str!("../golden/dev.slicer.daemon.plist"),
        ),
        (
            Service::Tray,
            include_str!("../golden/dev.slicer.tray.plist"),
        ),
    ] {
        assert_eq!(rendered(&plain(service, HostOs::MacOs)), golden);
    }
}

#[test]
fn what_is_written_is_what_is_read() {
    for job in [
        plain(Service::Daemon, HostOs::MacOs),
        plain(Service::Tray, HostOs::MacOs),
        nasty(Service::Daemon),
        nasty(Service::Tray),
    ] {
        let text = rendered(&job);
        let read = Value::from_reader(Cursor::new(text)).unwrap();
        assert_eq!(read, Value::Dictionary(definition(&job)));
        let list = read.into_dictionary().unwrap();
        let arguments = list["ProgramArguments"].as_array().unwrap();
        let arguments = arguments.iter().map(|a| a.as_string().unwrap());
        let mut wanted = vec![job.program.as_str()];
        wanted.extend(job.args.iter().map(String::as_str));
        assert_eq!(arguments.collect::<Vec<_>>(), wanted);
        let directory = list["WorkingDirectory"].as_string();
        assert_eq!(directory, Some(job.directory.as_str()));
    }
}

#[test]
fn a_service_is_as_launchd_says() {
    let printed = Printed::parse(RUNNING);
    assert_eq!(printed.state.as_deref(), Some("running"));
    assert_eq!((printed.pid, printed.last_exit), (Some(4711), None));
    let printed = Printed::parse(FAILED);
    assert_eq!(printed.state.as_deref(), Some("spawn scheduled"));
    assert_eq!(
        (printed.pid, printed.last_exit.as_deref()),
        (None, Some("exit code 78: EX_CONFIG"))
    );
    let killed = "x = {\n\tstate = not running\n\tlast terminating signal = Killed: 9\n}\n";
    let printed = Printed::parse(killed);
    assert_eq!(printed.last_exit.as_deref(), Some("signal Killed: 9"));
    for odd in ["", "}\n}\n}", "x = {\n\tpid = many\n", "pid = 3\n"] {
        assert_eq!(Printed::parse(odd), Printed::default(), "{odd:?}");
    }
}

/// A home with the daemon's definition in it, whose directory is the home.
fn installed() -> (tempfile::TempDir, Launchd<Script>, Script) {
    let home = tempfile::tempdir().unwrap();
    let (launchd, script) = launchd(home.path());
    let mut job = plain(Service::Daemon, HostOs::MacOs);
    home.path().to_str().unwrap().clone_into(&mut job.directory);
    let file = launchd.definition(Service::Daemon);
    fs::create_dir_all(file.parent().unwrap()).unwrap();
    fs::write(&file, launchd.render(&job).unwrap()).unwrap();
    (home, launchd, script)
}

#[tokio::test(start_paused = true)]
async fn stopping_waits_until_launchd_has_forgotten() {
    let (_home, launchd, script) = installed();
    let print = format!("launchctl print {SERVICE}");
    script
        .answer(&print, 0, RUNNING)
        // Operation now in progress.
        .answer(&format!("launchctl bootout {SERVICE}"), 36, "")
        .answer(&print, 0, RUNNING)
        .answer(&print, 113, "");
    launchd.stop(Service::Daemon).await.unwrap();
    script.is_over();

    script.answer(&print, 113, "");
    launchd.stop(Service::Daemon).await.unwrap();
    script.is_over();
}

#[tokio::test(start_paused = true)]
async fn what_goes_on_after_its_time_is_told() {
    let (_home, launchd, script) = installed();
    let print = format!("launchctl print {SERVICE}");
    script
        .answer(&print, 0, RUNNING)
        .answer(&format!("launchctl bootout {SERVICE}"), 0, "");
    for _ in 0..=135 * 5 {
        script.answer(&print, 0, RUNNING);
    }
    let e = launchd.stop(Service::Daemon).await.unwrap_err();
    assert!(matches!(e, ServiceError::DidNotStop { .. }), "{e}");
    script.is_over();
}

#[tokio::test]
async fn starting_loads_what_is_not_loaded() {
    let (home, launchd, script) = installed();
    let print = format!("launchctl print {SERVICE}");
    let file = launchd.definition(Service::Daemon);
    let bootstrap = format!("launchctl bootstrap gui/501 {}", file.display());
    script.answer(&print, 113, "").succeed(&[&bootstrap]);
    launchd.start(Service::Daemon).await.unwrap();
    script.is_over();
    // launchd doesn't make it.
    let logs = home.path().join("logs");
    assert!(logs.is_dir());

    // A log that became too large is put aside.
    let log = logs.join("daemon.log");
    let large = fs::File::create(&log).unwrap();
    large.set_len(MAX_LOG + 1).unwrap();
    script.answer(&print, 113, "").succeed(&[&bootstrap]);
    launchd.start(Service::Daemon).await.unwrap();
    assert!(!log.exists() && logs.join("daemon.log.1").exists());

    let kickstart = format!("launchctl kickstart {SERVICE}");
    script.answer(&print, 0, FAILED).succeed(&[&kickstart]);
    launchd.start(Service::Daemon).await.unwrap();
    script.is_over();

    script.answer(&print, 113, "");
    script.answer(&bootstrap, 5, "Bootstrap failed: 5: Input/output error");
    let e = launchd.start(Service::Daemon).await.unwrap_err();
    let wanted = format!("`{bootstrap}` failed: Bootstrap failed: 5: Input/output error");
    assert_eq!(e.to_string(), wanted);
}

#[tokio::test]
async fn status_is_of_the_list_and_of_launchd() {
    let (home, launchd, script) = installed();
    let print = format!("launchctl print {SERVICE}");
    script.answer(&print, 0, RUNNING);
    let status = launchd.status(Service::Daemon).await.unwrap();
    assert!(status.installed && status.running && !status.starting);
    assert_eq!(status.pid, Some(4711));
    assert_eq!(status.directory.as_deref(), Some(home.path()));

    script.answer(&print, 113, "");
    let status = launchd.status(Service::Daemon).await.unwrap();
    assert!(status.installed && !status.running && !status.starting);
    assert_eq!(status.state, "not loaded");

    script.answer(&print, 0, FAILED);
    let status = launchd.status(Service::Daemon).await.unwrap();
    assert!(!status.running && !status.starting);

    script.answer("launchctl print gui/501/dev.slicer.tray", 113, "");
    let status = launchd.status(Service::Tray).await.unwrap();
    assert!(!status.installed && !status.running);

    fs::write(launchd.definition(Service::Daemon), "nonsense").unwrap();
    script.answer(&print, 0, RUNNING);
    let status = launchd.status(Service::Daemon).await.unwrap();
    assert!(status.installed && status.running && status.directory.is_none());
    let e = launchd.logs(Service::Daemon, 1, false).unwrap_err();
    assert!(e.to_string().contains("writes it anew"), "{e}");
}

#[tokio::test]
async fn without_a_desktop_there_are_no_services() {
    let (launchd, script) = launchd(Path::new("/Users/alex"));
    script.answer("launchctl print gui/501", 113, "Could not find domain");
    let e = launchd.check().await.unwrap_err();
    assert!(matches!(e, ServiceError::NoSession { uid: 501 }), "{e}");
}

#[test]
fn logs_are_the_end_of_the_file() {
    let (home, launchd, _) = installed();
    let log = home.path().join("logs/daemon.log");
    let log = log.display();
    let call = launchd.logs(Service::Daemon, 5, false).unwrap();
    assert_eq!(call.line(), format!("tail -n 5 {log}"));
    let call = launchd.logs(Service::Daemon, 5, true).unwrap();
    assert_eq!(call.line(), format!("tail -F -n 5 {log}"));
    let e = launchd.logs(Service::Tray, 5, true).unwrap_err();
    assert!(e.to_string().contains("slicer-mac install"), "{e}");
}
