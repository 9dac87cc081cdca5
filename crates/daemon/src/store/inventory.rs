//! The list of images.

use super::ImageStore;
use crate::DaemonError;
use crate::bases::{Base, Reader};
use slicer_api::{Image, Images, Timestamp};
use slicer_image::{CachedImage, ImageCache};
use std::collections::{HashMap, HashSet};

impl ImageStore {
    /// All images, and what they cost. Blocks.
    pub(crate) fn list(&self) -> Result<Images, DaemonError> {
        let cache = self.cache()?;
        let cached = cache.list()?;
        let bases = self.bases.list()?;
        let counts = Counts::of(&cache, &cached);
        let digests: HashSet<&str> = cached.iter().map(|i| i.digest.as_str()).collect();
        let (named, unnamed): (Vec<&Base>, Vec<&Base>) = bases
            .iter()
            .partition(|base| digests.contains(base.digest.as_str()));
        let sum = |bases: &[&Base]| bases.iter().map(|base| base.disk_bytes).sum::<u64>();
        // What an image has that is read in place, out of the cache, is not of the cache's images.
        let idle = unnamed.into_iter().filter(|base| !self.is_used(base));
        let idle: Vec<&Base> = idle.collect();
        Ok(Images {
            disk_bytes: counts.total() + sum(&named),
            other_bytes: cache.unnamed_bytes()? + sum(&idle),
            images: cached
                .iter()
                .map(|image| self.shown(image, &cached, &bases, &counts))
                .collect(),
        })
    }

    fn shown(
        &self,
        image: &CachedImage,
        all: &[CachedImage],
        bases: &[Base],
        counts: &Counts,
    ) -> Image {
        let own: Vec<&Base> = bases.iter().filter(|b| b.digest == image.digest).collect();
        let alone = all.iter().filter(|i| i.digest == image.digest).count() == 1;
        let disk: u64 = own.iter().map(|base| base.disk_bytes).sum();
        let idle: u64 = own
            .iter()
            .filter(|base| alone && base.readers.is_empty())
            .map(|base| base.disk_bytes)
            .sum();
        let blobs = |owners: Option<usize>| -> u64 {
            let blobs = image
                .blobs
                .iter()
                .filter_map(|(blob, _)| counts.0.get(blob));
            let blobs = blobs.filter(|(_, n)| owners.is_none_or(|wanted| *n == wanted));
            blobs.map(|(bytes, _)| bytes).sum()
        };
        let mut vms = Vec::new();
        let mut commits = Vec::new();
        for reader in own.iter().flat_map(|base| &base.readers) {
            match reader {
                Reader::Vm(name) | Reader::Other(name) => vms.push(name.clone()),
                Reader::Commit(id) => commits.push(id.clone()),
            }
        }
        Image {
            name: image.name.clone(),
            digest: image.digest.clone(),
            arch: image.arch.clone(),
            size_bytes: image.blobs.iter().map(|(_, size)| size).sum(),
            disk_bytes: blobs(None) + disk,
            reclaimable_bytes: blobs(Some(1)) + idle,
            host_groups: self.groups_of(&image.name),
            vms,
            commits,
            created_at: image.created.as_ref().and_then(|text| text.parse().ok()),
            pulled_at: Timestamp::try_from(image.named).unwrap_or(Timestamp::UNIX_EPOCH),
        }
    }

    /// The groups whose configuration names this image.
    pub(super) fn groups_of(&self, name: &str) -> Vec<String> {
        let of = self.groups.iter();
        let of = of.filter(|(_, names)| names.iter().any(|n| n == name));
        of.map(|(group, _)| group.clone()).collect()
    }

    /// Whether a base is read from, or is what a group has whose image isn't in the cache.
    pub(super) fn is_used(&self, base: &Base) -> bool {
        let in_place = |group: &String| {
            let found = self.groups.iter().find(|(name, _)| name == group);
            found.is_some_and(|(_, names)| names.is_empty())
        };
        !base.readers.is_empty() || base.groups.iter().any(in_place)
    }
}

/// Bytes on the disk of each blob, and how many images have it.
struct Counts(HashMap<String, (u64, usize)>);

impl Counts {
    fn of(cache: &ImageCache, images: &[CachedImage]) -> Self {
        let mut counts = HashMap::new();
        for (blob, _) in images.iter().flat_map(|image| &image.blobs) {
            let count = counts
                .entry(blob.clone())
                .or_insert_with(|| (cache.disk_bytes(blob), 0));
            count.1 += 1;
        }
        Self(counts)
    }

    fn total(&self) -> u64 {
        self.0.values().map(|(bytes, _)| bytes).sum()
    }
}
