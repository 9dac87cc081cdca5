//! Removing images: names first, then the blobs and bases that nobody needs any more.

use super::ImageStore;
use crate::DaemonError;
use crate::bases::Base;
use slicer_api::{ApiError, KeptImage, RemovedImages};
use slicer_image::{CachedImage, Garbage};
use std::sync::Arc;
use tokio::task::JoinError;
use tracing::info;

/// The fewest digits of a digest that name an image.
const MIN_DIGITS: usize = 6;

impl ImageStore {
    /// Removes the image of this name, or all names of the image with this digest or beginning of
    /// one. One that the configuration names only with `force`.
    pub(crate) async fn remove(
        self: &Arc<Self>,
        reference: &str,
        force: bool,
    ) -> Result<RemovedImages, ApiError> {
        let (store, looked) = (self.clone(), reference.to_owned());
        // A refusal need not wait for those who read.
        let refused = tokio::task::spawn_blocking(move || store.chosen(&looked, force).map(drop));
        refused.await.map_err(failed)??;
        let reference = reference.to_owned();
        self.exclusively(move |store| {
            let chosen = store.chosen(&reference, force)?;
            let gone = store.take_out(&chosen, false);
            gone.map_err(|e| e.to_api())
        })
        .await
    }

    /// Removes all images and bases that nobody uses, and what pulls left unfinished.
    pub(crate) async fn wipe(self: &Arc<Self>) -> Result<RemovedImages, ApiError> {
        self.exclusively(|store| store.wipe_now().map_err(|e| e.to_api()))
            .await
    }

    /// Does work while nobody reads images.
    async fn exclusively<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> Result<T, ApiError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let guard = self.removing().await.ok_or_else(|| {
            ApiError::conflict(
                "an image is being made into a disk just now: try again when that is done",
            )
        })?;
        let store = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _guard = guard;
            work(&store)
        });
        done.await.map_err(failed)?
    }

    /// The images that a reference means, if they may be removed.
    fn chosen(&self, reference: &str, force: bool) -> Result<Vec<CachedImage>, ApiError> {
        let all = self.cache().and_then(|cache| Ok(cache.list()?));
        let chosen = choose(&all.map_err(|e| e.to_api())?, reference)?;
        for image in &chosen {
            self.check_unused(image, force)?;
        }
        Ok(chosen)
    }

    /// Refuses to remove an image that is still wanted.
    fn check_unused(&self, image: &CachedImage, force: bool) -> Result<(), ApiError> {
        let name = &image.name;
        if self.pulls.has(name) {
            return Err(ApiError::conflict(format!("{name} is being pulled")));
        }
        let groups = self.groups_of(name);
        if groups.is_empty() || force {
            return Ok(());
        }
        let groups = groups.iter().map(|g| format!("host group {g}"));
        let mut by: Vec<String> = groups.collect();
        let bases = self.bases.list().map_err(|e| e.to_api())?;
        let own = bases.iter().filter(|base| base.digest == image.digest);
        by.extend(own.flat_map(|base| &base.readers).map(ToString::to_string));
        Err(ApiError::conflict(format!(
            "{name} is used by {}: with force it is removed all the same, and fetched again when \
             the next VM starts",
            by.join(", ")
        )))
    }

    fn wipe_now(&self) -> Result<RemovedImages, DaemonError> {
        let mut kept = Vec::new();
        let mut chosen = Vec::new();
        for image in self.cache()?.list()? {
            let groups = self.groups_of(&image.name);
            let reason = if self.pulls.has(&image.name) {
                "it is being pulled".to_owned()
            } else if groups.is_empty() {
                chosen.push(image);
                continue;
            } else {
                format!(
                    "the configuration has it for host group {}",
                    groups.join(", ")
                )
            };
            kept.push(KeptImage {
                name: image.name,
                reason,
            });
        }
        let mut gone = self.take_out(&chosen, true)?;
        gone.kept.splice(0..0, kept);
        Ok(gone)
    }

    /// Takes images out, and with `all` what belongs to none.
    fn take_out(&self, chosen: &[CachedImage], all: bool) -> Result<RemovedImages, DaemonError> {
        let cache = self.cache()?;
        if !chosen.is_empty() {
            cache.unname(chosen)?;
            self.changed();
        }
        let mut gone = RemovedImages {
            removed: chosen.iter().map(|image| image.name.clone()).collect(),
            ..RemovedImages::default()
        };
        let what = if all {
            Garbage::All
        } else {
            let blobs = chosen.iter().flat_map(|image| &image.blobs);
            Garbage::Blobs(blobs.map(|(blob, _)| blob.clone()).collect())
        };
        match cache.collect(&what)? {
            Some(freed) => gone.freed_bytes += freed,
            None => gone.kept.push(KeptImage {
                name: "blobs".to_owned(),
                reason: "another image is being pulled or imported, which may have some of them: \
                         they are removed after that"
                    .to_owned(),
            }),
        }
        let left = cache.list()?;
        let goes = |base: &Base| {
            let of_chosen = chosen.iter().any(|image| image.digest == base.digest);
            (all || of_chosen) && !left.iter().any(|image| image.digest == base.digest)
        };
        for base in self.bases.list()?.into_iter().filter(goes) {
            let named = chosen.iter().find(|image| image.digest == base.digest);
            if !self.is_used(&base) {
                gone.freed_bytes += base.disk_bytes;
                self.bases.remove(base)?;
            } else if !base.readers.is_empty() {
                let readers: Vec<_> = base.readers.iter().map(ToString::to_string).collect();
                gone.kept.push(KeptImage {
                    name: named.map_or(base.digest, |image| image.name.clone()),
                    reason: format!("its base disk is read by {}", readers.join(", ")),
                });
            }
        }
        for name in &gone.removed {
            info!("removed image {name}");
        }
        Ok(gone)
    }
}

fn failed(_: JoinError) -> ApiError {
    ApiError::internal("removing images failed unexpectedly")
}

/// The images that a reference means: a name, as it is or in full, or else a digest or the beginning
/// of one.
fn choose(all: &[CachedImage], reference: &str) -> Result<Vec<CachedImage>, ApiError> {
    let by = |is: &dyn Fn(&CachedImage) -> bool| -> Vec<CachedImage> {
        all.iter().filter(|image| is(image)).cloned().collect()
    };
    let full = slicer_registry::canonical(reference).ok();
    let named = by(&|i| i.name == reference || Some(&i.name) == full.as_ref());
    if !named.is_empty() {
        return Ok(named);
    }
    let digits = reference.strip_prefix("sha256:").unwrap_or(reference);
    let is_digest = digits.len() >= MIN_DIGITS && digits.bytes().all(|b| b.is_ascii_hexdigit());
    let of_digest = by(&|i| {
        let digest = i.digest.strip_prefix("sha256:").unwrap_or(&i.digest);
        is_digest && digest.starts_with(digits)
    });
    let Some(first) = of_digest.first() else {
        let reference: String = reference.chars().take(256).collect();
        return Err(ApiError::not_found(format!(
            "image {reference:?} not found; `slicer image list` shows what there is"
        )));
    };
    if of_digest.iter().any(|image| image.digest != first.digest) {
        let text = format!("several images have a digest that begins with {digits}");
        return Err(ApiError::bad_request(text));
    }
    Ok(of_digest)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    #[test]
    fn images_go_by_names_and_digests() {
        let image = |name: &str, digit: &str| CachedImage {
            name: name.to_owned(),
            digest: format!("sha256:abcdef{}", digit.repeat(58)),
            arch: "amd64".to_owned(),
            blobs: Vec::new(),
            created: None,
            named: UNIX_EPOCH,
        };
        let all = [
            image("docker.io/library/a:latest", "1"),
            image("ghcr.io/x/b:1", "1"),
            image("ghcr.io/x/c:1", "2"),
            image("oci-archive:/x.tar", "3"),
        ];
        let names = |reference: &str| -> Result<Vec<String>, u16> {
            let chosen = choose(&all, reference).map_err(|e| e.status)?;
            Ok(chosen.into_iter().map(|image| image.name).collect())
        };
        for (reference, expected) in [
            ("a", Ok(vec![all[0].name.clone()])),
            ("ghcr.io/x/b:1", Ok(vec![all[1].name.clone()])),
            ("oci-archive:/x.tar", Ok(vec![all[3].name.clone()])),
            ("sha256:abcdef2", Ok(vec![all[2].name.clone()])),
            (
                "abcdef1",
                Ok(vec![all[0].name.clone(), all[1].name.clone()]),
            ),
            ("abcdef", Err(400)),
            ("abcde", Err(404)),
            ("", Err(404)),
            ("ghcr.io/x/b:2", Err(404)),
        ] {
            assert_eq!(names(reference), expected, "{reference}");
        }
    }
}
