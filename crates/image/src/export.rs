//! A disk as one stream of bytes that needs no other file: raw, or as a qcow2 image with nothing but
//! its data.
//!
//! Source: QEMU's docs/interop/qcow2.txt (version 3). All numbers are big-endian.

use crate::ImageError;
use crate::chain::Chain;
use crate::qcow2::{CLUSTER, CLUSTER_BITS, FileFormat, HEADER_LENGTH, MAGIC, REFCOUNT_ORDER};
use std::collections::VecDeque;
use std::path::Path;

/// Entries of a second-level table, and of a first-level or reference table's cluster.
const ENTRIES: u64 = CLUSTER / 8;
/// Clusters that one cluster of reference counts is about.
const COUNTED: u64 = CLUSTER / 2;
/// An entry's cluster has a reference count of one.
const COPIED: u64 = 1 << 63;
/// What a piece has at most, bytes.
const PIECE: u64 = 1 << 20;

/// A disk that is being exported. Nobody may write to it meanwhile; its files may go.
pub struct Export {
    chain: Chain,
    length: u64,
    size: u64,
    plan: Plan,
}

enum Plan {
    Raw {
        /// The next cluster.
        next: u64,
    },
    Qcow2 {
        /// One bit a cluster: whether it has data.
        map: Vec<u8>,
        /// Parts of the head that were not given yet: each is whole clusters.
        head: VecDeque<Head>,
        layout: Layout,
        /// The second-level table or the cluster that is next.
        at: At,
        /// The cluster of the stream that is next.
        position: u64,
    },
}

/// What is in front of tables and data.
#[derive(Clone, Copy)]
enum Head {
    Header,
    /// A cluster of the table of reference counts.
    CountTable(u64),
    /// A cluster of reference counts.
    Counts(u64),
    /// A cluster of the first-level table.
    Tables(u64),
}

/// How many clusters there are of each kind.
#[derive(Debug, Clone, Copy)]
struct Layout {
    count_tables: u64,
    counts: u64,
    l1: u64,
    l1_entries: u64,
    total: u64,
}

#[derive(Clone, Copy)]
enum At {
    Table(u64),
    Data { table: u64, cluster: u64 },
}

impl Export {
    /// Begins with the disk at `path`. What it lies over has to be what `known` knows the format of:
    /// nothing else is opened, whatever its file says.
    pub fn open(
        path: &Path,
        format: FileFormat,
        known: &dyn Fn(&Path) -> Option<FileFormat>,
        wanted: FileFormat,
    ) -> Result<Self, ImageError> {
        let mut chain = Chain::open(path, format, known)?;
        let size = chain.size();
        let (plan, length) = match wanted {
            FileFormat::Raw => (Plan::Raw { next: 0 }, size),
            FileFormat::Qcow2 => {
                let map = map(&mut chain)?;
                let layout = Layout::of(&map, chain.clusters());
                let head = std::iter::once(Head::Header)
                    .chain((0..layout.count_tables).map(Head::CountTable))
                    .chain((0..layout.counts).map(Head::Counts))
                    .chain((0..layout.l1).map(Head::Tables))
                    .collect();
                let plan = Plan::Qcow2 {
                    map,
                    head,
                    layout,
                    at: At::Table(0),
                    position: 0,
                };
                (plan, layout.total * CLUSTER)
            }
        };
        Ok(Self {
            chain,
            length,
            size,
            plan,
        })
    }

    /// How many bytes there are in all.
    pub fn length(&self) -> u64 {
        self.length
    }

    /// The disk's size as a machine sees it, bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// The next bytes, up to 1 MiB; none at the end. Blocks.
    pub fn next_piece(&mut self) -> Result<Vec<u8>, ImageError> {
        let mut piece = Vec::new();
        while (piece.len() as u64) < PIECE && self.add(&mut piece)? {}
        Ok(piece)
    }

    /// Adds what comes next; false at the end.
    fn add(&mut self, piece: &mut Vec<u8>) -> Result<bool, ImageError> {
        let before = piece.len();
        let room = |piece: &mut Vec<u8>| piece.resize(before + length(CLUSTER), 0);
        match &mut self.plan {
            Plan::Raw { next } => {
                if *next == self.chain.clusters() {
                    return Ok(false);
                }
                room(piece);
                self.chain.read(*next, &mut piece[before..])?;
                *next += 1;
                let over = (*next * CLUSTER).saturating_sub(self.size);
                piece.truncate(piece.len() - length(over));
            }
            Plan::Qcow2 {
                map,
                head,
                layout,
                at,
                position,
            } => {
                if let Some(part) = head.pop_front() {
                    room(piece);
                    layout.fill(part, self.size, map, &mut piece[before..]);
                    *position += 1;
                    return Ok(true);
                }
                loop {
                    match *at {
                        At::Table(table) if table == layout.l1_entries => return Ok(false),
                        At::Table(table) if data_of(map, table) == 0 => *at = At::Table(table + 1),
                        At::Table(table) => {
                            room(piece);
                            let mut place = *position + 1;
                            for (n, entry) in piece[before..].chunks_exact_mut(8).enumerate() {
                                if has(map, table * ENTRIES + n as u64) {
                                    let value = COPIED | (place * CLUSTER);
                                    entry.copy_from_slice(&value.to_be_bytes());
                                    place += 1;
                                }
                            }
                            *at = At::Data {
                                table,
                                cluster: table * ENTRIES,
                            };
                            break;
                        }
                        At::Data { table, cluster } if cluster == (table + 1) * ENTRIES => {
                            *at = At::Table(table + 1);
                        }
                        At::Data { table, cluster } => {
                            let next = cluster + 1;
                            *at = At::Data {
                                table,
                                cluster: next,
                            };
                            if has(map, cluster) {
                                room(piece);
                                self.chain.read(cluster, &mut piece[before..])?;
                                break;
                            }
                        }
                    }
                }
                *position += 1;
            }
        }
        Ok(true)
    }
}

impl Layout {
    fn of(map: &[u8], clusters: u64) -> Self {
        let l1_entries = clusters.div_ceil(ENTRIES);
        let tables = (0..l1_entries).map(|table| data_of(map, table));
        let content: u64 = tables.filter(|n| *n > 0).map(|n| n + 1).sum();
        let l1 = (l1_entries * 8).div_ceil(CLUSTER).max(1);
        // Reference counts count themselves: more of them are needed until there are enough.
        let (mut counts, mut count_tables) = (1, 1);
        loop {
            let total = 1 + count_tables + counts + l1 + content;
            let enough = (
                total.div_ceil(COUNTED),
                total.div_ceil(COUNTED).div_ceil(ENTRIES),
            );
            if (counts, count_tables) == enough {
                return Self {
                    count_tables,
                    counts,
                    l1,
                    l1_entries,
                    total,
                };
            }
            (counts, count_tables) = enough;
        }
    }

    /// Writes a cluster of the head, which is zeros before.
    fn fill(&self, part: Head, size: u64, map: &[u8], into: &mut [u8]) {
        let l1_at = 1 + self.count_tables + self.counts;
        match part {
            Head::Header => {
                let mut header = Vec::with_capacity(usize::try_from(HEADER_LENGTH).unwrap_or(0));
                header.extend(MAGIC);
                header.extend(3u32.to_be_bytes());
                header.extend([0; 12]); // it lies over nothing
                header.extend(CLUSTER_BITS.to_be_bytes());
                header.extend(size.to_be_bytes());
                header.extend(0u32.to_be_bytes()); // no encryption
                let entries = u32::try_from(self.l1_entries).unwrap_or(u32::MAX);
                header.extend(entries.to_be_bytes());
                header.extend((l1_at * CLUSTER).to_be_bytes());
                header.extend(CLUSTER.to_be_bytes()); // reference count table
                let tables = u32::try_from(self.count_tables).unwrap_or(u32::MAX);
                header.extend(tables.to_be_bytes());
                header.extend([0; 12]); // snapshots: none
                header.extend([0; 24]); // features: none
                header.extend(REFCOUNT_ORDER.to_be_bytes());
                header.extend(HEADER_LENGTH.to_be_bytes());
                into[..header.len()].copy_from_slice(&header);
            }
            Head::CountTable(n) => {
                let first = n * ENTRIES;
                for (n, entry) in (first..self.counts).zip(into.chunks_exact_mut(8)) {
                    let place = (1 + self.count_tables + n) * CLUSTER;
                    entry.copy_from_slice(&place.to_be_bytes());
                }
            }
            Head::Counts(n) => {
                let first = n * COUNTED;
                for (_, entry) in (first..self.total).zip(into.chunks_exact_mut(2)) {
                    entry.copy_from_slice(&1u16.to_be_bytes());
                }
            }
            Head::Tables(n) => {
                let mut place = l1_at + self.l1;
                for table in 0..self.l1_entries.min((n + 1) * ENTRIES) {
                    let data = data_of(map, table);
                    if data == 0 {
                        continue;
                    }
                    if table >= n * ENTRIES {
                        let entry = length((table - n * ENTRIES) * 8);
                        let value = COPIED | (place * CLUSTER);
                        into[entry..entry + 8].copy_from_slice(&value.to_be_bytes());
                    }
                    place += data + 1;
                }
            }
        }
    }
}

/// Which clusters have data.
fn map(chain: &mut Chain) -> Result<Vec<u8>, ImageError> {
    let clusters = chain.clusters();
    let tables = clusters.div_ceil(ENTRIES);
    let mut map = vec![0; length(tables * ENTRIES / 8)];
    for cluster in 0..clusters {
        if chain.has_data(cluster)? {
            map[length(cluster / 8)] |= 1 << (cluster % 8);
        }
    }
    Ok(map)
}

fn has(map: &[u8], cluster: u64) -> bool {
    map[length(cluster / 8)] & (1 << (cluster % 8)) != 0
}

/// How many clusters of a second-level table have data.
fn data_of(map: &[u8], table: u64) -> u64 {
    let (from, to) = (
        length(table * ENTRIES / 8),
        length((table + 1) * ENTRIES / 8),
    );
    map[from..to]
        .iter()
        .map(|b| u64::from(b.count_ones()))
        .sum()
}

/// Of what is in memory already.
fn length(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::overlay_disk;
    use proptest::prelude::*;
    use std::fs::{self, File};
    use std::os::unix::fs::{FileExt, MetadataExt};
    use std::process::Command;

    fn all(export: &mut Export) -> Vec<u8> {
        let mut bytes = Vec::new();
        loop {
            let piece = export.next_piece().unwrap();
            if piece.is_empty() {
                assert_eq!(bytes.len() as u64, export.length());
                return bytes;
            }
            bytes.extend(piece);
        }
    }

    fn nothing(_: &Path) -> Option<FileFormat> {
        None
    }

    /// A raw disk with this at these places.
    fn raw(path: &Path, size: u64, data: &[(u64, &[u8])]) {
        let file = File::create(path).unwrap();
        file.set_len(size).unwrap();
        for (at, bytes) in data {
            file.write_all_at(bytes, *at).unwrap();
        }
    }

    fn run(program: &str, args: &[&str]) -> Option<String> {
        let output = Command::new(program).args(args).output().ok()?;
        assert!(output.status.success(), "{program} {args:?}: {output:?}");
        Some(String::from_utf8(output.stdout).unwrap())
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn what_is_exported_is_the_disk(
            size in 1u64..40,
            odd in 0u64..16,
            data in proptest::collection::vec((0u64..(40 << 20), 1usize..200_000), 0..6),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let disk = dir.path().join("disk");
            let size = (size << 20) + odd * 4096;
            let noise: Vec<_> = data
                .iter()
                .filter(|(at, _)| *at < size)
                .map(|(at, n)| (*at, vec![7; (*n).min(length(size - at))]))
                .collect();
            let noise: Vec<_> = noise.iter().map(|(at, b)| (*at, &b[..])).collect();
            raw(&disk, size, &noise);
            let expected = fs::read(&disk).unwrap();
            let open = |path: &Path, format, wanted| Export::open(path, format, &nothing, wanted);

            let mut as_raw = open(&disk, FileFormat::Raw, FileFormat::Raw).unwrap();
            prop_assert!(all(&mut as_raw) == expected);

            let mut as_qcow2 = open(&disk, FileFormat::Raw, FileFormat::Qcow2).unwrap();
            let image = dir.path().join("image");
            fs::write(&image, all(&mut as_qcow2)).unwrap();
            let mut back = open(&image, FileFormat::Qcow2, FileFormat::Raw).unwrap();
            prop_assert!(all(&mut back) == expected);
        }
    }

    #[test]
    fn qemu_takes_what_is_exported() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let name = |name: &str| at(name).to_str().unwrap().to_owned();
        // Two first-level entries' worth, so that tables and counts are of several kinds.
        let size = 3 << 30;
        let large = vec![3; 5 << 20];
        raw(
            &at("base"),
            size,
            &[(0, b"first"), (2 << 30, &large), (size - 1, b"x")],
        );
        overlay_disk(&at("base"), FileFormat::Raw, &at("middle")).unwrap();
        if run("qemu-img", &["--version"]).is_none() {
            println!("no qemu-img here");
            return;
        }
        let write = |disk: &str, commands: &[&str]| {
            let disk = name(disk);
            let mut args = vec!["-f", "qcow2", "-d", "unmap"];
            args.extend(commands.iter().flat_map(|c| ["-c", c]));
            args.push(&disk);
            run("qemu-io", &args).unwrap();
        };
        write("middle", &["write -P 1 64k 200k", "write -z 2G 1M"]);
        overlay_disk(&at("middle"), FileFormat::Qcow2, &at("top")).unwrap();
        write("top", &["write -P 2 100k 10k", "discard 2052M 1M"]);
        let known = |path: &Path| match path.file_name()?.to_str()? {
            "base" => Some(FileFormat::Raw),
            "middle" => Some(FileFormat::Qcow2),
            _ => None,
        };
        let open = |wanted| Export::open(&at("top"), FileFormat::Qcow2, &known, wanted);
        let mut export = open(FileFormat::Qcow2).unwrap();
        assert_eq!(export.size(), size);
        fs::write(at("out"), all(&mut export)).unwrap();
        // What was cleared in between isn't there, and neither are holes.
        let out = fs::metadata(at("out")).unwrap().len();
        assert!(out < 5 << 20, "{out}");
        run("qemu-img", &["check", "-f", "qcow2", &name("out")]).unwrap();
        run(
            "qemu-img",
            &[
                "compare",
                "-f",
                "qcow2",
                "-F",
                "qcow2",
                &name("top"),
                &name("out"),
            ],
        )
        .unwrap();
        // Its files may go while it is read.
        let mut export = open(FileFormat::Raw).unwrap();
        for file in ["top", "middle", "base"] {
            fs::remove_file(at(file)).unwrap();
        }
        let file = File::create(at("raw")).unwrap();
        let mut place = 0;
        loop {
            let piece = export.next_piece().unwrap();
            if piece.is_empty() {
                break;
            }
            if piece.iter().any(|b| *b != 0) {
                file.write_all_at(&piece, place).unwrap();
            }
            place += piece.len() as u64;
        }
        file.set_len(place).unwrap();
        assert!(file.metadata().unwrap().blocks() * 512 < 16 << 20);
        run(
            "qemu-img",
            &[
                "compare",
                "-f",
                "raw",
                "-F",
                "qcow2",
                &name("raw"),
                &name("out"),
            ],
        )
        .unwrap();
    }

    #[test]
    fn nothing_is_opened_that_is_not_known() {
        let dir = tempfile::tempdir().unwrap();
        let (base, top) = (dir.path().join("base"), dir.path().join("top"));
        raw(&base, 1 << 20, &[(0, b"secret")]);
        overlay_disk(&base, FileFormat::Raw, &top).unwrap();
        let refused = Export::open(&top, FileFormat::Qcow2, &nothing, FileFormat::Raw);
        let text = refused.err().unwrap().to_string();
        assert!(text.contains("no disk of this daemon's"), "{text}");
    }

    #[test]
    fn nonsense_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (disk, image) = (dir.path().join("disk"), dir.path().join("image"));
        raw(&disk, 1 << 20, &[(0, b"data")]);
        let mut export = Export::open(&disk, FileFormat::Raw, &nothing, FileFormat::Qcow2).unwrap();
        let good = all(&mut export);
        // Version, cluster size, encryption, features, the first table's size and place, the
        // entries of both tables.
        for at in [7, 23, 35, 72, 36, 40, 3 * (1 << 16) + 1, 4 * (1 << 16) + 1] {
            let mut bytes = good.clone();
            bytes[at] ^= 0x55;
            fs::write(&image, &bytes).unwrap();
            let opened = Export::open(&image, FileFormat::Qcow2, &nothing, FileFormat::Raw);
            let read = opened.and_then(|mut export| export.next_piece());
            assert!(read.is_err(), "{at}");
        }
        fs::write(&image, &good[..100]).unwrap();
        assert!(Export::open(&image, FileFormat::Qcow2, &nothing, FileFormat::Raw).is_err());
    }
}
