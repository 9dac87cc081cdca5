//! What the layers of an image add up to: one tree.
//!
//! Source: the OCI image specification 1.1, layer.md (whiteouts, opaque directories, replacement of
//! files), read as containerd and umoci do where it is silent: a parent that was not listed is made,
//! a symlink among an entry's parents is followed within the root.

use std::collections::BTreeMap;

/// How the names of whiteouts begin.
const WHITEOUT: &[u8] = b".wh.";
/// Notes of the aufs filesystem in old layers; all but the opaque marker say nothing to others.
const AUFS: &[u8] = b".wh..wh.";
/// Linux's PATH_MAX, bytes: nothing longer could be opened in a guest.
const MAX_PATH: usize = 4096;
/// Linux's NAME_MAX, bytes.
const MAX_NAME: usize = 255;
/// How deep directories may be nested. Symlinks could otherwise lead ever deeper.
const MAX_DEPTH: usize = 2048;
/// Linux's limit of symlinks in a path.
const MAX_SYMLINKS: usize = 40;

/// A time of Unix: seconds, and nanoseconds after them.
pub(crate) type Time = (i64, u32);

/// Owner, permissions and the like.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Attrs {
    /// Permission bits, with setuid, setgid and sticky.
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Time,
    /// Extended attributes: name and value.
    pub(crate) xattrs: Vec<(String, Vec<u8>)>,
}

impl Attrs {
    /// Those of a directory that no layer lists.
    fn unlisted() -> Self {
        Self {
            mode: 0o755,
            ..Self::default()
        }
    }
}

/// A directory, by its place in [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct DirId(usize);

/// Anything else, by its place in [`Tree`]. Hard links share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct LeafId(usize);

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Node {
    Dir(DirId),
    Leaf(LeafId),
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
struct Child {
    node: Node,
    /// The layer that last named it.
    layer: usize,
}

#[derive(Debug)]
struct Dir {
    attrs: Attrs,
    depth: usize,
    children: BTreeMap<Box<[u8]>, Child>,
}

/// A file, a symlink or a special file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Leaf {
    pub(crate) attrs: Attrs,
    pub(crate) kind: LeafKind,
}

/// What kind of thing a [`Leaf`] is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum LeafKind {
    /// A regular file. Its bytes are those of an entry of a layer, both counted from 0.
    File {
        size: u64,
        layer: usize,
        entry: u64,
    },
    Symlink(Vec<u8>),
    Char {
        major: u32,
        minor: u32,
    },
    Block {
        major: u32,
        minor: u32,
    },
    Fifo,
}

/// What a layer's entry does to the tree.
#[derive(Debug)]
pub(crate) enum Change {
    Dir(Attrs),
    Leaf(Leaf),
    /// Another name for what is at this path.
    HardLink(Vec<u8>),
}

/// Why an entry is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refused {
    #[error("its path leads out of the image with \"..\"")]
    ParentDir,
    #[error("its path is absolute")]
    Absolute,
    #[error("its path is longer than {MAX_PATH} bytes")]
    LongPath,
    #[error("a name in its path is longer than {MAX_NAME} bytes")]
    LongName,
    #[error("a name in its path holds a zero byte")]
    Zero,
    #[error("it is nested deeper than {MAX_DEPTH} directories")]
    TooDeep,
    #[error("its path goes through too many symlinks")]
    Symlinks,
    #[error("the target of the hard link, {0:?}, does not exist or is a directory")]
    LinkTarget(String),
    #[error("the root of an image must be a directory")]
    Root,
    #[error("a whiteout of nothing, or one with something in it")]
    Whiteout,
}

/// The merged tree, from the first layer up to the one [`Tree::apply`] was last called for.
#[derive(Debug)]
pub(crate) struct Tree {
    dirs: Vec<Dir>,
    leaves: Vec<Leaf>,
}

impl Tree {
    /// The root directory.
    pub(crate) const ROOT: DirId = DirId(0);

    /// A tree with nothing but the root.
    pub(crate) fn new() -> Self {
        let root = Dir {
            attrs: Attrs::unlisted(),
            depth: 0,
            children: BTreeMap::new(),
        };
        Self {
            dirs: vec![root],
            leaves: Vec::new(),
        }
    }

    /// How many nodes were ever made: what the tree's memory grows with.
    pub(crate) fn nodes(&self) -> usize {
        self.dirs.len() + self.leaves.len()
    }

    /// Attributes of a directory.
    pub(crate) fn attrs(&self, dir: DirId) -> &Attrs {
        &self.dirs[dir.0].attrs
    }

    /// The file, symlink or special file `id`.
    pub(crate) fn leaf(&self, id: LeafId) -> &Leaf {
        &self.leaves[id.0]
    }

    /// The names in a directory, in the order of their bytes.
    pub(crate) fn children(&self, dir: DirId) -> impl Iterator<Item = (&[u8], Node)> {
        self.dirs[dir.0]
            .children
            .iter()
            .map(|(name, child)| (&**name, child.node))
    }

    /// What is at `path`, without following symlinks.
    pub(crate) fn get(&self, path: &str) -> Option<Node> {
        path.split('/')
            .filter(|c| !c.is_empty())
            .try_fold(Node::Dir(Self::ROOT), |node, name| match node {
                Node::Dir(dir) => self.dirs[dir.0]
                    .children
                    .get(name.as_bytes())
                    .map(|child| child.node),
                Node::Leaf(_) => None,
            })
    }

    /// Applies an entry of `layer`. Layers come in order, lowest first.
    pub(crate) fn apply(
        &mut self,
        layer: usize,
        path: &[u8],
        change: Change,
    ) -> Result<(), Refused> {
        let components = components(path)?;
        let Some((name, parents)) = components.split_last() else {
            let Change::Dir(attrs) = change else {
                return Err(Refused::Root);
            };
            self.dirs[Self::ROOT.0].attrs = attrs;
            return Ok(());
        };
        if let Some(parent) = parents.iter().find(|parent| parent.starts_with(WHITEOUT)) {
            return if parent.starts_with(AUFS) {
                Ok(())
            } else {
                Err(Refused::Whiteout)
            };
        }
        let dir = self.enter(parents, layer)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(dir, hidden, layer);
        }
        let node = match change {
            Change::Dir(attrs) => {
                if let Some(Node::Dir(id)) = self.child(dir, name) {
                    self.dirs[id.0].attrs = attrs;
                    Node::Dir(id)
                } else {
                    Node::Dir(self.new_dir(dir, attrs)?)
                }
            }
            Change::Leaf(leaf) => {
                self.leaves.push(leaf);
                Node::Leaf(LeafId(self.leaves.len() - 1))
            }
            Change::HardLink(target) => Node::Leaf(self.link_target(&target)?),
        };
        self.insert(dir, name, Child { node, layer });
        Ok(())
    }

    /// What a hard link leads to. Finding it changes nothing.
    fn link_target(&self, target: &[u8]) -> Result<LeafId, Refused> {
        let missing = || Refused::LinkTarget(String::from_utf8_lossy(target).into_owned());
        let components = components(target)?;
        let (name, parents) = components.split_last().ok_or_else(missing)?;
        let mut walk = Walk::new(parents);
        while let Some(step) = walk.step(self)? {
            match step {
                Step::Entered(..) => {}
                Step::Blocked(_) => return Err(missing()),
            }
        }
        match self.child(walk.dir(), name) {
            Some(Node::Leaf(id)) => Ok(id),
            _ => Err(missing()),
        }
    }

    /// Removes what layers below `layer` put there: `name`, or for `.wh..opq` everything.
    fn whiteout(&mut self, dir: DirId, name: &[u8], layer: usize) -> Result<(), Refused> {
        match name {
            b"" | b"." | b".." => return Err(Refused::Whiteout),
            b".wh..opq" => {
                self.purge(dir, layer);
                return Ok(());
            }
            _ if name.starts_with(WHITEOUT) => return Ok(()),
            _ => {}
        }
        match self.dirs[dir.0].children.get(name) {
            Some(child) if child.layer < layer => {
                self.dirs[dir.0].children.remove(name);
            }
            // The layer itself put it there, but what it holds may come from below.
            Some(Child {
                node: Node::Dir(id),
                ..
            }) => {
                let id = *id;
                self.purge(id, layer);
            }
            _ => {}
        }
        Ok(())
    }

    /// Removes everything in a directory, at any depth, that `layer` did not put there.
    fn purge(&mut self, dir: DirId, layer: usize) {
        let mut pending = vec![dir];
        while let Some(dir) = pending.pop() {
            self.dirs[dir.0].children.retain(|_, child| {
                let keep = child.layer >= layer;
                if let (true, Node::Dir(id)) = (keep, child.node) {
                    pending.push(id);
                }
                keep
            });
        }
    }

    /// The directory at `path`. What is missing on the way is made, any other file gives way to a
    /// directory. All directories on the way count as named by `layer`, so that its whiteouts
    /// spare what it adds below them.
    fn enter(&mut self, path: &[&[u8]], layer: usize) -> Result<DirId, Refused> {
        let mut walk = Walk::new(path);
        while let Some(step) = walk.step(self)? {
            let (parent, name, id) = match step {
                Step::Entered(parent, name, id) => (parent, name, id),
                Step::Blocked(name) => {
                    let id = self.new_dir(walk.dir(), Attrs::unlisted())?;
                    (walk.enter(id), name, id)
                }
            };
            self.insert(
                parent,
                &name,
                Child {
                    node: Node::Dir(id),
                    layer,
                },
            );
        }
        Ok(walk.dir())
    }

    fn child(&self, dir: DirId, name: &[u8]) -> Option<Node> {
        self.dirs[dir.0].children.get(name).map(|child| child.node)
    }

    fn insert(&mut self, dir: DirId, name: &[u8], child: Child) {
        let children = &mut self.dirs[dir.0].children;
        match children.get_mut(name) {
            Some(old) => *old = child,
            None => {
                children.insert(name.into(), child);
            }
        }
    }

    fn new_dir(&mut self, parent: DirId, attrs: Attrs) -> Result<DirId, Refused> {
        let depth = self.dirs[parent.0].depth + 1;
        if depth > MAX_DEPTH {
            return Err(Refused::TooDeep);
        }
        self.dirs.push(Dir {
            attrs,
            depth,
            children: BTreeMap::new(),
        });
        Ok(DirId(self.dirs.len() - 1))
    }
}

/// A walk along a path, following symlinks within the root.
struct Walk {
    /// The names still to go, last first.
    rest: Vec<Box<[u8]>>,
    /// The directories below the root that lead to the current one.
    trail: Vec<DirId>,
    symlinks: usize,
}

/// What a step of a [`Walk`] found.
enum Step {
    /// In this directory, under this name, a directory; the walk is in it now.
    Entered(DirId, Box<[u8]>, DirId),
    /// Nothing to go into under this name. The walk stays where it is.
    Blocked(Box<[u8]>),
}

impl Walk {
    fn new(path: &[&[u8]]) -> Self {
        let rest = path.iter().rev().map(|name| Box::from(*name)).collect();
        Self {
            rest,
            trail: Vec::new(),
            symlinks: 0,
        }
    }

    /// The current directory.
    fn dir(&self) -> DirId {
        self.trail.last().copied().unwrap_or(Tree::ROOT)
    }

    /// Goes into `dir`, a child of the current directory, which is returned.
    fn enter(&mut self, dir: DirId) -> DirId {
        let parent = self.dir();
        self.trail.push(dir);
        parent
    }

    /// Goes on to the next directory; `None` at the end of the path.
    fn step(&mut self, tree: &Tree) -> Result<Option<Step>, Refused> {
        while let Some(name) = self.rest.pop() {
            if &*name == b".." {
                self.trail.pop();
                continue;
            }
            let leaf = match tree.child(self.dir(), &name) {
                Some(Node::Dir(id)) => return Ok(Some(Step::Entered(self.enter(id), name, id))),
                Some(Node::Leaf(id)) => tree.leaf(id),
                None => return Ok(Some(Step::Blocked(name))),
            };
            let LeafKind::Symlink(target) = &leaf.kind else {
                return Ok(Some(Step::Blocked(name)));
            };
            self.symlinks += 1;
            let length: usize = self.rest.iter().map(|name| name.len() + 1).sum();
            if self.symlinks > MAX_SYMLINKS || length + target.len() > MAX_PATH {
                return Err(Refused::Symlinks);
            }
            if target.first() == Some(&b'/') {
                self.trail.clear();
            }
            let names = target
                .split(|b| *b == b'/')
                .filter(|name| !matches!(*name, b"" | b"."));
            let at = self.rest.len();
            self.rest.extend(names.map(Box::from));
            self.rest[at..].reverse();
        }
        Ok(None)
    }
}

/// The names a path consists of. `./` and doubled slashes mean nothing.
fn components(path: &[u8]) -> Result<Vec<&[u8]>, Refused> {
    if path.len() > MAX_PATH {
        return Err(Refused::LongPath);
    }
    if path.first() == Some(&b'/') {
        return Err(Refused::Absolute);
    }
    let mut names = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => return Err(Refused::ParentDir),
            _ if name.len() > MAX_NAME => return Err(Refused::LongName),
            _ if name.contains(&0) => return Err(Refused::Zero),
            _ => names.push(name),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests;
