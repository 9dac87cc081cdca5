//! A desktop of a test's own: an X server without a screen, a session bus, and a panel that shows icons
//! of the StatusNotifierItem protocol. It is used by a mouse and a keyboard, and looked at over the
//! bus.

use crate::spawn;
use crate::{CliOutput, LIMIT, run_command, soon, wait_until};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use zbus::{OwnedObjectPath, OwnedVariant, Structure, Variant};

const WATCHER: &str = "org.kde.StatusNotifierWatcher";
/// The height of the panel, and so the width of an icon's place.
const PANEL: u32 = 32;
/// How long a menu may take to open, until one clicks again.
const CLICK_AGAIN: Duration = Duration::from_secs(10);

const PANEL_CONFIG: &str = r#"<?xml version="1.0" encoding="UTF-8"?>
<channel name="xfce4-panel" version="1.0">
  <property name="configver" type="int" value="2"/>
  <property name="panels" type="array">
    <value type="int" value="1"/>
    <property name="panel-1" type="empty">
      <property name="position" type="string" value="p=6;x=0;y=0"/>
      <property name="length" type="uint" value="100"/>
      <property name="position-locked" type="bool" value="true"/>
      <property name="size" type="uint" value="32"/>
      <property name="plugin-ids" type="array">
        <value type="int" value="1"/>
      </property>
    </property>
  </property>
  <property name="plugins" type="empty">
    <property name="plugin-1" type="string" value="systray"/>
  </property>
</channel>
"#;

/// An entry and its submenu, `(ia{sv}av)` of com.canonical.dbusmenu.
type Node = (i32, HashMap<String, OwnedVariant>, Vec<OwnedVariant>);

/// An entry of a menu, as the program says it over the bus.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MenuEntry {
    /// Its text; empty for a line between entries.
    pub label: String,
    /// Whether it can be chosen.
    pub enabled: bool,
    /// Whether it is checked, where it can be.
    pub checked: Option<bool>,
    /// The entries of its submenu.
    pub entries: Vec<MenuEntry>,
}

/// The desktop. All of it ends when it is dropped.
#[derive(Debug)]
pub struct Desktop {
    dir: tempfile::TempDir,
    display: String,
    children: Vec<Child>,
    bus: zbus::Connection,
}

impl Desktop {
    /// Starts it.
    ///
    /// # Panics
    /// When one of its programs is missing: `make desktop` installs them.
    pub async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let config = dir
            .path()
            .join("home/.config/xfce4/xfconf/xfce-perchannel-xml");
        fs::create_dir_all(&config).unwrap();
        fs::write(config.join("xfce4-panel.xml"), PANEL_CONFIG).unwrap();
        let mut children = Vec::new();
        // It says on its output which display was free.
        let mut server = spawn::mortal(Path::new("Xvfb"));
        server
            .args(["-displayfd", "1", "-screen", "0", "1000x700x24"])
            .args(["-nolisten", "tcp"])
            .stdout(Stdio::piped());
        let mut server = started(server, dir.path(), "Xvfb");
        let mut output = server.stdout.take().unwrap();
        children.push(server);
        let number = tokio::task::spawn_blocking(move || {
            let (mut text, mut byte) = (String::new(), [0]);
            while output.read(&mut byte).unwrap() == 1 && byte != *b"\n" {
                text.push(char::from(byte[0]));
            }
            text
        });
        let number = tokio::time::timeout(LIMIT, number).await.unwrap().unwrap();
        let display = format!(":{number}");
        let address = format!("unix:path={}", dir.path().join("bus").display());
        let mut bus = spawn::mortal(Path::new("dbus-daemon"));
        bus.args(["--session", "--nofork", "--nopidfile", "--address"])
            .arg(&address);
        settle(&mut bus, dir.path(), &display);
        children.push(started(bus, dir.path(), "dbus-daemon"));
        let up = soon(LIMIT, || {
            UnixStream::connect(dir.path().join("bus")).is_ok()
        });
        assert!(up, "the session bus does not come up");
        let bus = zbus::connection::Builder::address(address.as_str());
        let bus = bus.build().await.unwrap();
        let mut this = Self {
            dir,
            display,
            children,
            bus,
        };
        let mut panel = spawn::mortal(Path::new("xfce4-panel"));
        panel.arg("--disable-wm-check");
        this.settle(&mut panel);
        this.children
            .push(started(panel, this.dir.path(), "xfce4-panel"));
        wait_until("the panel shows icons", LIMIT, async || {
            this.items().await.is_some()
        })
        .await;
        this
    }

    /// Has a program run on this desktop.
    pub fn settle(&self, command: &mut Command) {
        settle(command, self.dir.path(), &self.display);
    }

    /// Starts a program on this desktop, which the caller has to end.
    ///
    /// # Panics
    /// When it can't be started.
    pub fn spawn(&self, program: &Path, change: impl FnOnce(&mut Command)) -> Child {
        let mut command = spawn::mortal(program);
        self.settle(&mut command);
        change(&mut command);
        let name = program.file_name().unwrap().to_string_lossy();
        started(command, self.dir.path(), &name)
    }

    /// The addresses of the icons there are; none without a panel.
    async fn items(&self) -> Option<Vec<String>> {
        let items = self
            .property(
                WATCHER,
                "/StatusNotifierWatcher",
                WATCHER,
                "RegisteredStatusNotifierItems",
            )
            .await?;
        items.try_into().ok()
    }

    async fn property(
        &self,
        service: &str,
        path: &str,
        interface: &str,
        name: &str,
    ) -> Option<OwnedVariant> {
        let properties = Some("org.freedesktop.DBus.Properties");
        let which = (interface, name);
        let asked = self
            .bus
            .call_method(Some(service), path, properties, "Get", &which);
        asked.await.ok()?.body().deserialize().ok()
    }

    /// What the menu of the one icon there is shows; none without an icon.
    pub async fn menu(&self) -> Option<Vec<MenuEntry>> {
        let item = self.items().await?.pop()?;
        let (service, path) = item.split_at_checked(item.find('/')?)?;
        let interface = "org.kde.StatusNotifierItem";
        let menu = self.property(service, path, interface, "Menu").await?;
        let menu: OwnedObjectPath = menu.try_into().ok()?;
        let interface = Some("com.canonical.dbusmenu");
        let all = (0i32, -1i32, Vec::<&str>::new());
        let layout = self
            .bus
            .call_method(Some(service), menu, interface, "GetLayout", &all)
            .await
            .ok()?;
        let body = layout.body();
        let (_, (_, _, children)): (u32, Node) = body.deserialize().ok()?;
        children.iter().map(|child| entry(child)).collect()
    }

    /// Waits until the icon is in the panel, opens its menu by the mouse, and chooses an entry by the
    /// keyboard: the last of these, by way of the submenus before.
    ///
    /// # Panics
    /// When there is no such entry, or it can't be chosen.
    pub async fn choose(&self, labels: &[&str]) {
        wait_until("the icon is in the panel", LIMIT, async || {
            self.windows()
                .await
                .iter()
                .any(|(w, h)| *w >= PANEL / 2 && *h == PANEL)
        })
        .await;
        let middle = (PANEL / 2).to_string();
        let mut clicked: Option<Instant> = None;
        wait_until("the menu is open", LIMIT, async || {
            // A panel that is short of time loses a click now and then: whoever sees no menu clicks again.
            if clicked.is_none_or(|at| at.elapsed() > CLICK_AGAIN) {
                self.xdotool(&["mousemove", "10", &middle, "click", "3"])
                    .await;
                clicked = Some(Instant::now());
            }
            self.windows().await.iter().any(|(_, h)| *h > 2 * PANEL)
        })
        .await;
        let menu = self.menu().await.unwrap();
        let mut entries = &menu;
        let mut keys = vec!["key"];
        for (depth, label) in labels.iter().enumerate() {
            // What can't be chosen is passed over.
            let at = entries.iter().filter(|e| e.enabled && !e.label.is_empty());
            let at = at.map(|e| e.label.as_str()).position(|l| l == *label);
            let at = at.unwrap_or_else(|| panic!("no {label} in {menu:#?}"));
            // A submenu opens with its first entry chosen.
            let first = usize::from(depth == 0);
            keys.extend(vec!["Down"; at + first]);
            let last = depth + 1 == labels.len();
            keys.push(if last { "Return" } else { "Right" });
            entries = &entries.iter().find(|e| e.label == *label).unwrap().entries;
        }
        self.xdotool(&keys).await;
    }

    /// The windows of the panel's icons and of their menus.
    async fn windows(&self) -> Vec<(u32, u32)> {
        self.windows_of("Wrapper-2.0").await
    }

    /// Width and height of the windows of this class that are to be seen.
    pub async fn windows_of(&self, class: &str) -> Vec<(u32, u32)> {
        let args = ["search", "--onlyvisible", "--class", class];
        let args = [&args[..], &["getwindowgeometry", "--shell", "%@"]].concat();
        let found = self.try_xdotool(&args).await;
        let found = String::from_utf8(found.stdout).unwrap();
        let mut width = 0;
        let sizes = found.lines().filter_map(|line| {
            let (name, value) = line.split_once('=')?;
            match name {
                "WIDTH" => width = value.parse().unwrap(),
                "HEIGHT" => return Some((width, value.parse().unwrap())),
                _ => {}
            }
            None
        });
        sizes.collect()
    }

    /// Has mouse and keyboard do this.
    ///
    /// # Panics
    /// When they can't.
    pub async fn xdotool(&self, args: &[&str]) {
        self.try_xdotool(args).await.text();
    }

    async fn try_xdotool(&self, args: &[&str]) -> CliOutput {
        let mut command = Command::new("xdotool");
        command.args(args);
        self.settle(&mut command);
        run_command(command.into(), None).await
    }

    /// What a program started here has complained of.
    pub fn log(&self, program: &str) -> String {
        fs::read_to_string(log(self.dir.path(), program)).unwrap_or_default()
    }
}

impl Drop for Desktop {
    fn drop(&mut self) {
        // The others lose their display and their bus by that.
        for child in self.children.iter_mut().rev() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn settle(command: &mut Command, dir: &Path, display: &str) {
    let home = dir.join("home");
    let runtime = dir.join("home/run");
    let _ = fs::create_dir_all(&runtime);
    command
        .env("DISPLAY", display)
        .env(
            "DBUS_SESSION_BUS_ADDRESS",
            format!("unix:path={}", dir.join("bus").display()),
        )
        .env("HOME", &home)
        .env("XDG_RUNTIME_DIR", runtime)
        // Nobody here reads screens aloud.
        .env("NO_AT_BRIDGE", "1")
        .env("LC_ALL", "C.UTF-8");
    for name in [
        "XAUTHORITY",
        "WAYLAND_DISPLAY",
        "XDG_CONFIG_HOME",
        "XDG_CACHE_HOME",
        "XDG_DATA_HOME",
        "SESSION_MANAGER",
    ] {
        command.env_remove(name);
    }
}

fn log(dir: &Path, program: &str) -> std::path::PathBuf {
    dir.join(format!("{program}.log"))
}

fn started(mut command: Command, dir: &Path, name: &str) -> Child {
    command
        .stdin(Stdio::null())
        .stderr(File::create(log(dir, name)).unwrap());
    spawn::spawn(command).unwrap_or_else(|e| panic!("{name}: {e}: run `make desktop`"))
}

/// An entry from `(ia{sv}av)`, as `GetLayout` of com.canonical.dbusmenu has them.
fn entry(value: &Variant<'_>) -> Option<MenuEntry> {
    let structure: &Structure<'_> = value.downcast_ref().ok()?;
    let [_, Variant::Dict(properties), Variant::Array(children)] = structure.fields() else {
        return None;
    };
    let text = |name: &str| properties.get::<_, String>(&name).ok().flatten();
    let flag = |name: &str| properties.get::<_, bool>(&name).ok().flatten();
    let state = properties.get::<_, i32>(&"toggle-state").ok().flatten();
    let separator = text("type").as_deref() == Some("separator");
    Some(MenuEntry {
        // Single ones would make a letter a key.
        label: text("label").unwrap_or_default().replace("__", "_"),
        enabled: !separator && flag("enabled").unwrap_or(true),
        checked: text("toggle-type").and(state).map(|s| s == 1),
        entries: children
            .iter()
            .map(|child| match child {
                Variant::Variant(inner) => entry(inner),
                other => entry(other),
            })
            .collect::<Option<_>>()?,
    })
}
