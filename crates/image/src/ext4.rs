//! Writing a tree as an ext4 filesystem, straight from the layers.

use crate::merge::{Merged, Source};
use crate::tree::{Attrs, DirId, LeafId, LeafKind, Node};
use crate::{ImageError, Progress};
use mkext4::{
    FsBuilder, InodeCount, InodeHandle, Layout, Meta, Options, ROOT, RegionSink, SpecialKind,
};
use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

const BLOCK: u64 = 4096;
/// What is left as a hole when it is all zeros.
const CHUNK: usize = 4096;
const INODE: u64 = 256;
/// Bytes per inode, as mke2fs has it: the ratio stays when the filesystem grows.
const BYTES_PER_INODE: u64 = 16384;
/// Superblock times. Fixed, so that the same image always gives the same bytes.
const EPOCH: i64 = 1_700_000_000;

/// What distinguishes one filesystem from another.
pub(crate) struct Shape {
    pub(crate) label: &'static str,
    pub(crate) uuid: [u8; 16],
    /// Size in bytes at least, whatever the content takes.
    pub(crate) min_size: u64,
    /// Size of the journal, in blocks of 4096 bytes.
    pub(crate) journal_blocks: u32,
}

/// Writes everything below `root` into the empty file `out` (named `path` in errors). Returns the
/// filesystem's size in bytes.
pub(crate) fn write(
    merged: &Merged<'_>,
    root: DirId,
    shape: &Shape,
    out: &File,
    path: &Path,
    progress: &dyn Fn(Progress<'_>),
) -> Result<u64, ImageError> {
    let failed = |source| match source {
        mkext4::Error::Io(source) => ImageError::Io {
            action: "write",
            path: path.to_owned(),
            source,
        },
        source => ImageError::Filesystem {
            path: path.to_owned(),
            source,
        },
    };
    let need = Need::of(merged, root);
    // The estimate leaves room; how much directories and extents really take shows only when they
    // are laid out.
    let mut attempt = 0;
    let plan = loop {
        match Plan::make(merged, root, need.options(shape, attempt), progress) {
            Ok(plan) => break plan,
            Err(_) if attempt < 4 => attempt += 1,
            Err(e) => return Err(failed(e)),
        }
    };
    let size = plan.layout.image_len();
    out.set_len(size).map_err(ImageError::io("write", path))?;
    let mut writer = plan.layout.writer(SparseSink(out)).map_err(failed)?;
    let mut done = 0;
    merged.stream(
        &plan.fills,
        &mut |(handle, length): (InodeHandle, u64), bytes| {
            let mut bytes = Tracked {
                inner: bytes,
                error: None,
            };
            writer
                .fill(handle, &mut bytes)
                .map_err(|e| match bytes.error.take() {
                    Some(source) => ImageError::Layer {
                        layer: merged.image.manifest_digest().to_owned(),
                        source,
                    },
                    None => failed(e),
                })?;
            done += length;
            progress(Progress::Data {
                done,
                of: need.data,
            });
            Ok(())
        },
    )?;
    writer.finish().map_err(failed)?;
    Ok(size)
}

/// How much room a tree takes.
struct Need {
    inodes: u64,
    blocks: u64,
    /// Bytes in files.
    data: u64,
}

impl Need {
    fn of(merged: &Merged<'_>, root: DirId) -> Self {
        let tree = &merged.tree;
        let mut need = Self {
            inodes: 16,
            blocks: 64,
            data: 0,
        };
        let mut seen = std::collections::HashSet::new();
        let mut pending = vec![root];
        while let Some(dir) = pending.pop() {
            let mut names = 24;
            for (name, node) in tree.children(dir) {
                names += (8 + name.len() as u64).next_multiple_of(4);
                match node {
                    Node::Dir(id) => pending.push(id),
                    Node::Leaf(id) if seen.insert(id) => {
                        let leaf = tree.leaf(id);
                        need.inodes += 1;
                        need.blocks += u64::from(!leaf.attrs.xattrs.is_empty());
                        match &leaf.kind {
                            LeafKind::File { size, .. } => {
                                need.data = need.data.saturating_add(*size);
                                need.blocks = need.blocks.saturating_add(size.div_ceil(BLOCK));
                            }
                            LeafKind::Symlink(target) => {
                                need.blocks += u64::from(target.len() > 59);
                            }
                            _ => {}
                        }
                    }
                    Node::Leaf(_) => {}
                }
            }
            need.inodes += 1;
            need.blocks += u64::from(!tree.attrs(dir).xattrs.is_empty());
            // Large directories get an index and half-empty leaves.
            need.blocks += 1 + names.div_ceil(BLOCK) * 3 / 2;
        }
        need
    }

    /// Room for all of it, and more with every attempt.
    fn options(&self, shape: &Shape, attempt: u32) -> Options {
        let slack = 1024 + self.blocks / 50;
        let fixed = self.blocks + u64::from(shape.journal_blocks) + (slack << (2 * attempt));
        // Inode tables take INODE of every BYTES_PER_INODE; bitmaps and descriptors are in the slack.
        let size = fixed.saturating_mul(BLOCK) / (BYTES_PER_INODE - INODE) * BYTES_PER_INODE;
        let spare = self.inodes + self.inodes / 8 + 64;
        let size = size
            .saturating_add(spare.saturating_mul(INODE))
            .max(shape.min_size)
            .next_multiple_of(1 << 20);
        let inodes = spare.max(size / BYTES_PER_INODE);

        let mut options = Options::new(size, shape.uuid, EPOCH);
        options.label = Some(shape.label.to_owned());
        options.inodes = InodeCount::Exact(u32::try_from(inodes).unwrap_or(u32::MAX));
        options.journal_blocks = Some(shape.journal_blocks);
        options.reserved_percent = 0;
        options
    }
}

/// A filesystem laid out: where everything goes, and which bytes are still to come.
struct Plan {
    layout: Layout,
    fills: HashMap<Source, (InodeHandle, u64)>,
}

impl Plan {
    fn make(
        merged: &Merged<'_>,
        root: DirId,
        options: Options,
        progress: &dyn Fn(Progress<'_>),
    ) -> mkext4::Result<Self> {
        let tree = &merged.tree;
        let mut fs = FsBuilder::new(options)?;
        let mut fills = HashMap::new();
        let mut made: HashMap<LeafId, InodeHandle> = HashMap::new();
        fs.set_meta(ROOT, meta(tree.attrs(root)))?;
        set_xattrs(&mut fs, ROOT, tree.attrs(root))?;
        let mut pending = vec![(root, ROOT)];
        while let Some((dir, handle)) = pending.pop() {
            for (name, node) in tree.children(dir) {
                // The filesystem's own.
                if dir == root && name == b"lost+found" {
                    continue;
                }
                let Ok(name) = std::str::from_utf8(name) else {
                    let entry = String::from_utf8_lossy(name);
                    progress(Progress::Skipped {
                        entry: &entry,
                        why: "its name is not UTF-8",
                    });
                    continue;
                };
                let id = match node {
                    Node::Dir(child) => {
                        let made = fs.mkdir(handle, name, meta(tree.attrs(child)))?;
                        set_xattrs(&mut fs, made, tree.attrs(child))?;
                        pending.push((child, made));
                        continue;
                    }
                    Node::Leaf(id) => id,
                };
                if let Some(first) = made.get(&id) {
                    fs.hardlink(handle, name, *first)?;
                    continue;
                }
                let leaf = tree.leaf(id);
                let meta = meta(&leaf.attrs);
                let special = |major: &u32, minor: &u32| (*major, *minor);
                let inode = match &leaf.kind {
                    LeafKind::File { size, layer, entry } => {
                        let inode = fs.file(handle, name, meta, *size)?;
                        if *size > 0 {
                            fills.insert((*layer, *entry), (inode, *size));
                        }
                        inode
                    }
                    LeafKind::Symlink(target) => {
                        let Ok(target) = std::str::from_utf8(target) else {
                            let why = "its target is not UTF-8";
                            progress(Progress::Skipped { entry: name, why });
                            continue;
                        };
                        fs.symlink(
                            handle,
                            name,
                            target,
                            Meta {
                                mode: 0o777,
                                ..meta
                            },
                        )?
                    }
                    LeafKind::Char { major, minor } => {
                        let (major, minor) = special(major, minor);
                        fs.mknod(handle, name, meta, SpecialKind::Char { major, minor })?
                    }
                    LeafKind::Block { major, minor } => {
                        let (major, minor) = special(major, minor);
                        fs.mknod(handle, name, meta, SpecialKind::Block { major, minor })?
                    }
                    LeafKind::Fifo => fs.mknod(handle, name, meta, SpecialKind::Fifo)?,
                };
                set_xattrs(&mut fs, inode, &leaf.attrs)?;
                made.insert(id, inode);
            }
        }
        Ok(Self {
            layout: fs.seal()?,
            fills,
        })
    }
}

fn meta(attrs: &Attrs) -> Meta {
    Meta::new(attrs.mode, attrs.uid, attrs.gid, attrs.mtime)
}

fn set_xattrs(fs: &mut FsBuilder, inode: InodeHandle, attrs: &Attrs) -> mkext4::Result<()> {
    attrs
        .xattrs
        .iter()
        .try_for_each(|(name, value)| fs.set_xattr(inode, name, value))
}

/// Writes at given places of a file that is all holes, and leaves zeros as holes.
struct SparseSink<'a>(&'a File);

impl RegionSink for SparseSink<'_> {
    fn data(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut start = 0;
        let mut at = 0;
        for chunk in bytes.chunks(CHUNK) {
            let end = at + chunk.len();
            if chunk.iter().all(|b| *b == 0) {
                self.0
                    .write_all_at(&bytes[start..at], offset + start as u64)?;
                start = end;
            }
            at = end;
        }
        self.0.write_all_at(&bytes[start..], offset + start as u64)
    }

    fn zeros(&mut self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }
}

/// Remembers why reading failed: the filesystem builder would mix it up with failing writes.
struct Tracked<R> {
    inner: R,
    error: Option<io::Error>,
}

impl<R: Read> Read for Tracked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buf) {
            Ok(0) if !buf.is_empty() => {
                self.error = Some(io::ErrorKind::UnexpectedEof.into());
                Ok(0)
            }
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                let kind = e.kind();
                self.error = Some(e);
                Err(kind.into())
            }
            other => other,
        }
    }
}
