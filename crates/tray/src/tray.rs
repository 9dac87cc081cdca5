//! The menu in the bar. All here runs on the main thread.

use crate::action::Action;
use crate::icon;
use crate::menu::{Entry, View, alike};
use tray_icon::menu::accelerator::{Accelerator, CMD_OR_CTRL, Code};
use tray_icon::menu::{CheckMenuItem, IsMenuItem, Menu, MenuItem, PredefinedMenuItem, Submenu};
use tray_icon::{BadIcon, Icon, TrayIcon, TrayIconBuilder};

/// macOS colours the icon as the bar needs it; elsewhere it has to be seen on dark and on light.
const COLOUR: [u8; 3] = if cfg!(target_os = "macos") {
    [0, 0, 0]
} else {
    [240, 130, 50]
};

/// Why the menu can't be shown.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TrayError {
    #[error("cannot make the icon")]
    Icon(#[from] BadIcon),
    #[error("cannot put the icon into the bar")]
    Tray(#[from] tray_icon::Error),
    #[error("cannot change the menu")]
    Menu(#[from] tray_icon::menu::Error),
}

/// The icon and its menu. Dropped, they vanish.
pub(crate) struct Tray {
    icon: TrayIcon,
    menu: Menu,
    items: Vec<Item>,
    view: View,
}

/// What stands for an entry.
enum Item {
    Plain(MenuItem),
    Check(CheckMenuItem),
    Submenu(Submenu, Vec<Item>),
    Separator(PredefinedMenuItem),
}

/// What holds items.
#[derive(Clone, Copy)]
enum Parent<'a> {
    Menu(&'a Menu),
    Submenu(&'a Submenu),
}

impl Tray {
    /// Puts an icon with this menu into the bar.
    pub(crate) fn new(view: View) -> Result<Self, TrayError> {
        let menu = Menu::new();
        let mut items = Vec::new();
        Parent::Menu(&menu).change(&mut items, &[], &view.entries)?;
        let icon = TrayIconBuilder::new()
            .with_id("slicer")
            .with_title(title())
            .with_tooltip(&view.summary)
            .with_menu(Box::new(menu.clone()))
            .build()?;
        set_icon(&icon, view.lit)?;
        Ok(Self {
            icon,
            menu,
            items,
            view,
        })
    }

    /// Shows something else.
    pub(crate) fn show(&mut self, view: View) -> Result<(), TrayError> {
        if view.lit != self.view.lit {
            set_icon(&self.icon, view.lit)?;
        }
        if view.summary != self.view.summary {
            self.icon.set_tooltip(Some(&view.summary))?;
        }
        let parent = Parent::Menu(&self.menu);
        parent.change(&mut self.items, &self.view.entries, &view.entries)?;
        self.view = view;
        Ok(())
    }

    /// What a click on the icon itself does, where it doesn't open the menu.
    pub(crate) fn primary(&self) -> Option<Action> {
        self.view.entries.iter().find_map(|entry| match entry {
            Entry::Item {
                action: action @ Action::Shell(_),
                enabled: true,
                ..
            } => Some(action.clone()),
            _ => None,
        })
    }
}

/// A name for those that list icons; a Mac would write it beside the icon.
fn title() -> &'static str {
    if cfg!(target_os = "macos") {
        ""
    } else {
        "slicer"
    }
}

fn set_icon(tray: &TrayIcon, lit: bool) -> Result<(), TrayError> {
    let drawn = icon::draw(COLOUR, lit);
    let icon = Some(Icon::from_rgba(drawn, icon::SIZE, icon::SIZE)?);
    #[cfg(target_os = "macos")]
    tray.set_icon_templated(icon)?;
    #[cfg(not(target_os = "macos"))]
    tray.set_icon(icon)?;
    Ok(())
}

impl Parent<'_> {
    fn insert(self, item: &dyn IsMenuItem, at: usize) -> Result<(), tray_icon::menu::Error> {
        match self {
            Self::Menu(menu) => menu.insert(item, at),
            Self::Submenu(menu) => menu.insert(item, at),
        }
    }

    fn remove(self, at: usize) {
        match self {
            Self::Menu(menu) => drop(menu.remove_at(at)),
            Self::Submenu(menu) => drop(menu.remove_at(at)),
        }
    }

    /// Makes the items that stand for `old` stand for `new`. What is alike stays, so that a menu that is
    /// open can be read and clicked on.
    fn change(self, items: &mut Vec<Item>, old: &[Entry], new: &[Entry]) -> Result<(), TrayError> {
        let (first, last) = alike(old, new);
        let (old_end, new_end) = (old.len() - last, new.len() - last);
        for _ in items.drain(first..old_end) {
            self.remove(first);
        }
        for (at, entry) in new[..new_end].iter().enumerate().skip(first) {
            let item = Item::new(entry)?;
            self.insert(item.as_menu_item(), at)?;
            items.insert(at, item);
        }
        let kept = (0..first).zip(0..first);
        let kept = kept.chain((old_end..old.len()).zip(new_end..new.len()));
        for (from, to) in kept {
            if old[from] != new[to]
                && let Some(item) = items.get_mut(to)
            {
                item.change(&old[from], &new[to])?;
            }
        }
        Ok(())
    }
}

impl Item {
    fn new(entry: &Entry) -> Result<Self, TrayError> {
        Ok(match entry {
            Entry::Line(text) => Self::Plain(MenuItem::new(escape(text), false, None)),
            Entry::Item {
                action,
                label,
                enabled,
            } => {
                let key =
                    (*action == Action::Quit).then(|| Accelerator::new(CMD_OR_CTRL, Code::KeyQ));
                let id = action.to_string();
                Self::Plain(MenuItem::with_id(id, escape(label), *enabled, key))
            }
            Entry::Check {
                action,
                label,
                enabled,
                checked,
            } => {
                let id = action.to_string();
                let label = escape(label);
                Self::Check(CheckMenuItem::with_id(id, label, *enabled, *checked, None))
            }
            Entry::Submenu { label, entries } => {
                let menu = Submenu::new(escape(label), !entries.is_empty());
                let mut items = Vec::new();
                Parent::Submenu(&menu).change(&mut items, &[], entries)?;
                Self::Submenu(menu, items)
            }
            Entry::Separator => Self::Separator(PredefinedMenuItem::separator()),
        })
    }

    fn as_menu_item(&self) -> &dyn IsMenuItem {
        match self {
            Self::Plain(item) => item,
            Self::Check(item) => item,
            Self::Submenu(menu, _) => menu,
            Self::Separator(item) => item,
        }
    }

    /// Makes it stand for an entry that is like the one before.
    fn change(&mut self, old: &Entry, new: &Entry) -> Result<(), TrayError> {
        match (self, new) {
            (Self::Plain(item), Entry::Line(text)) => item.set_text(escape(text)),
            (Self::Plain(item), Entry::Item { label, enabled, .. }) => {
                item.set_text(escape(label));
                item.set_enabled(*enabled);
            }
            (
                Self::Check(item),
                Entry::Check {
                    label,
                    enabled,
                    checked,
                    ..
                },
            ) => {
                item.set_text(escape(label));
                item.set_enabled(*enabled);
                item.set_checked(*checked);
            }
            (Self::Submenu(menu, items), Entry::Submenu { label, entries }) => {
                menu.set_text(escape(label));
                menu.set_enabled(!entries.is_empty());
                if let Entry::Submenu { entries: old, .. } = old {
                    Parent::Submenu(menu).change(items, old, entries)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// A text in which no letter is a key.
fn escape(text: &str) -> String {
    text.replace('&', "&&")
}
