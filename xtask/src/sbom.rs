//! What programs are made of, as a bill of materials in CycloneDX's JSON: all crates that are compiled
//! into them, with their versions and licences, and which of them uses which.

use anyhow::{Context, Result, ensure};
use cargo_metadata::{DependencyKind, Metadata, MetadataCommand, Package, PackageId, TargetKind};
use cyclonedx_bom::models::component::Classification;
use cyclonedx_bom::models::dependency::{Dependencies, Dependency};
use cyclonedx_bom::models::license::{LicenseChoice, Licenses};
use cyclonedx_bom::prelude::{
    Bom, Component, Components, DateTime, Metadata as About, NormalizedString, Purl,
    SpdxExpression, Validate,
};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// A crate, as a component, and what it uses.
type Parts = BTreeMap<String, (Component, BTreeSet<String>)>;

/// Of these packages of ours, each for a target, as Rust names it. It is said to be of this time,
/// seconds since 1970.
pub(crate) fn of(workspace: &Path, roots: &[(&str, &str)], epoch: u64) -> Result<String> {
    let mut parts = Parts::new();
    let mut programs = BTreeSet::new();
    let mut known: BTreeMap<&str, Metadata> = BTreeMap::new();
    for &(package, target) in roots {
        if !known.contains_key(target) {
            known.insert(target, metadata(workspace, target)?);
        }
        programs.insert(walk(&known[target], package, &mut parts)?);
    }

    let version = env!("CARGO_PKG_VERSION");
    let whole = format!("slicer@{version}");
    let time = jiff::Timestamp::from_second(epoch.try_into()?)?;
    let about = About {
        timestamp: Some(DateTime::try_from(time.to_string())?),
        component: Some(Component::new(
            Classification::Application,
            "slicer",
            version,
            Some(whole.clone()),
        )),
        ..About::default()
    };
    let mut uses = vec![dependency(whole, programs)];
    let mut components = Vec::new();
    for (name, (component, used)) in parts {
        uses.push(dependency(name, used));
        components.push(component);
    }
    let bom = Bom {
        // Random, and this is to be the same for the same programs.
        serial_number: None,
        metadata: Some(about),
        components: Some(Components(components)),
        dependencies: Some(Dependencies(uses)),
        ..Bom::default()
    };
    let checked = bom.validate_version(cyclonedx_bom::prelude::SpecVersion::V1_5);
    ensure!(checked.passed(), "no valid CycloneDX: {checked:?}");
    let mut text = Vec::new();
    bom.output_as_json_v1_5(&mut text)?;
    Ok(String::from_utf8(text)?)
}

fn metadata(workspace: &Path, target: &str) -> Result<Metadata> {
    let options = ["--locked", "--filter-platform", target];
    MetadataCommand::new()
        .manifest_path(workspace.join("Cargo.toml"))
        .other_options(options.map(String::from).to_vec())
        .exec()
        .with_context(|| format!("cannot learn what is built for {target}"))
}

/// Adds a package and all that is compiled into it; gives back its name among the parts.
fn walk(metadata: &Metadata, package: &str, parts: &mut Parts) -> Result<String> {
    let resolve = metadata.resolve.as_ref().context("nothing is resolved")?;
    let nodes: BTreeMap<&PackageId, _> = resolve.nodes.iter().map(|n| (&n.id, n)).collect();
    let packages: BTreeMap<&PackageId, &Package> =
        metadata.packages.iter().map(|p| (&p.id, p)).collect();
    let root = metadata
        .workspace_packages()
        .into_iter()
        .find(|p| p.name.as_str() == package)
        .with_context(|| format!("no package {package}"))?;
    let mut to_do = vec![root];
    let mut seen = BTreeSet::from([&root.id]);
    while let Some(package) = to_do.pop() {
        let node = nodes
            .get(&package.id)
            .with_context(|| format!("{} is not resolved", package.name))?;
        let mut used = BTreeSet::new();
        for dep in &node.deps {
            let normal = |info: &cargo_metadata::DepKindInfo| info.kind == DependencyKind::Normal;
            let Some(other) = packages.get(&dep.pkg) else {
                continue;
            };
            // What runs while compiling is in no program.
            let macros = |target: &cargo_metadata::Target| target.is_kind(TargetKind::ProcMacro);
            if !dep.dep_kinds.iter().any(normal) || other.targets.iter().any(macros) {
                continue;
            }
            used.insert(name(other));
            if seen.insert(&dep.pkg) {
                to_do.push(other);
            }
        }
        let entry = parts.entry(name(package));
        let (_, all) = entry.or_insert((component(package)?, BTreeSet::new()));
        all.extend(used);
    }
    Ok(name(root))
}

fn name(package: &Package) -> String {
    format!("{}@{}", package.name, package.version)
}

fn component(package: &Package) -> Result<Component> {
    let version = package.version.to_string();
    let mut component = Component::new(
        Classification::Library,
        &package.name,
        &version,
        Some(name(package)),
    );
    if package.source.is_some() {
        component.purl = Some(Purl::new("cargo", &package.name, &version)?);
    }
    let about = package.description.as_deref();
    component.description = about.map(NormalizedString::new);
    if let Some(license) = &package.license {
        let license = SpdxExpression::parse_lax(license.clone())
            .with_context(|| format!("the licence of {}", name(package)))?;
        component.licenses = Some(Licenses(vec![LicenseChoice::Expression(license)]));
    }
    Ok(component)
}

fn dependency(name: String, used: BTreeSet<String>) -> Dependency {
    Dependency {
        dependency_ref: name,
        dependencies: used.into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    #[test]
    fn names_what_is_compiled_in_and_nothing_else() {
        let workspace = crate::workspace().unwrap();
        let root = [("slicer-daemon", "aarch64-apple-darwin")];
        let text = of(workspace, &root, 1_700_000_000).unwrap();
        assert_eq!(of(workspace, &root, 1_700_000_000).unwrap(), text);
        let bom: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(bom["bomFormat"], "CycloneDX");
        assert_eq!(bom["metadata"]["timestamp"], "2023-11-14T22:13:20Z");
        let all = bom["components"].as_array().unwrap();
        let named = |name: &str| all.iter().find(|part| part["name"] == name);
        let ring = named("ring").unwrap();
        let purl = ring["purl"].as_str().unwrap();
        assert!(purl.starts_with("pkg:cargo/ring@"), "{purl}");
        assert!(ring["licenses"][0]["expression"].is_string(), "{ring}");
        assert!(named("slicer-api").unwrap()["purl"].is_null());
        // For another system, for tests, and for compiling.
        for absent in ["zbus", "proptest", "serde_derive", "cc", "xtask"] {
            assert!(named(absent).is_none(), "{absent}");
        }
        // All that is used is there.
        for dependency in bom["dependencies"].as_array().unwrap() {
            for used in dependency["dependsOn"].as_array().into_iter().flatten() {
                let there = all.iter().any(|part| part["bom-ref"] == *used);
                assert!(there, "{used}");
            }
        }
    }
}
