//! Docker's contexts, as its own command keeps them: a directory for each below `contexts/meta`,
//! and the name of the selected one in `config.json`.
//!
//! Source: docker/cli, `cli/context/store` and `cli/config`.

use indexmap::IndexMap;
use serde::{Deserialize, Serialize};
use serde_json::ser::{PrettyFormatter, Serializer};
use serde_json::value::{RawValue, to_raw_value};
use sha2::{Digest as _, Sha256};
use std::fmt::Write as _;
use std::fs::{self, DirBuilder, File, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

/// The context that is always there and means that none is selected.
pub(crate) const DEFAULT: &str = "default";
/// Longest file that is read, bytes.
const MAX_FILE: u64 = 16 << 20;
/// Whose key in `config.json` names the selected context.
const CURRENT: &str = "currentContext";

#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error(
        "{0:?} can't be the name of a Docker context: use letters, digits and any of _ . + -, at \
         least two, the first a letter or a digit, and not `default`"
    )]
    Name(String),
    #[error("no home directory: set HOME or DOCKER_CONFIG")]
    NoHome,
    #[error("cannot {what} {}", path.display())]
    Io {
        what: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is not what Docker writes", path.display())]
    Json {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// A context's `meta.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(crate) struct Context {
    pub(crate) name: String,
    #[serde(default)]
    metadata: Metadata,
    #[serde(default)]
    endpoints: Endpoints,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Metadata {
    #[serde(default)]
    description: String,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Endpoints {
    #[serde(default)]
    docker: Endpoint,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Endpoint {
    #[serde(default)]
    host: String,
    #[serde(default, rename = "SkipTLSVerify")]
    skip_tls_verify: bool,
}

impl Context {
    /// A context whose daemon is at `host`, a URL such as `unix:///run/docker.sock`.
    pub(crate) fn new(name: &str, description: &str, host: &str) -> Self {
        Self {
            name: name.to_owned(),
            metadata: Metadata {
                description: description.to_owned(),
            },
            endpoints: Endpoints {
                docker: Endpoint {
                    host: host.to_owned(),
                    skip_tls_verify: false,
                },
            },
        }
    }

    pub(crate) fn description(&self) -> &str {
        &self.metadata.description
    }

    pub(crate) fn host(&self) -> &str {
        &self.endpoints.docker.host
    }
}

/// The top level of `config.json`: keys in their order, values as they were written.
type Config = IndexMap<String, Box<RawValue>>;

/// Docker's directory of one user.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
}

impl Store {
    /// `DOCKER_CONFIG`, or `.docker` in the home directory. `env` reads a variable; empty is unset.
    pub(crate) fn find(env: impl Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let given = |name| env(name).filter(|v| !v.is_empty());
        let dir = match (given("DOCKER_CONFIG"), given("HOME")) {
            (Some(dir), _) => dir.into(),
            (None, Some(home)) => Path::new(&home).join(".docker"),
            (None, None) => return Err(StoreError::NoHome),
        };
        Ok(Self { dir })
    }

    /// The context of this name, if there is one.
    pub(crate) fn get(&self, name: &str) -> Result<Option<Context>, StoreError> {
        let path = self.meta(name)?.join("meta.json");
        match read(&path)? {
            None => Ok(None),
            Some(text) => match serde_json::from_slice(&text) {
                Ok(context) => Ok(Some(context)),
                Err(source) => Err(StoreError::Json { path, source }),
            },
        }
    }

    /// Writes a context in the place of any other of its name, certificates included.
    pub(crate) fn put(&self, context: &Context) -> Result<(), StoreError> {
        let dir = self.meta(&context.name)?;
        let path = dir.join("meta.json");
        let text = serde_json::to_vec(context);
        let text = text.map_err(|source| StoreError::Json {
            path: path.clone(),
            source,
        })?;
        remove(&self.tls(&context.name)?)?;
        make_dir(&dir, 0o755)?;
        write(&path, &text, 0o644)
    }

    /// Removes a context with its certificates; tells whether there was one.
    pub(crate) fn remove(&self, name: &str) -> Result<bool, StoreError> {
        let tls = remove(&self.tls(name)?)?;
        Ok(remove(&self.meta(name)?)? || tls)
    }

    /// The name of the context that is selected, if one is.
    pub(crate) fn selected(&self) -> Result<Option<String>, StoreError> {
        let (path, config) = self.config()?;
        let Some(name) = config.get(CURRENT) else {
            return Ok(None);
        };
        let name = serde_json::from_str::<Option<String>>(name.get());
        let name = name.map_err(|source| StoreError::Json { path, source })?;
        Ok(name.filter(|n| !n.is_empty() && n != DEFAULT))
    }

    /// Selects a context, or none.
    pub(crate) fn select(&self, name: Option<&str>) -> Result<(), StoreError> {
        if self.selected()?.as_deref() == name {
            return Ok(());
        }
        let (path, mut config) = self.config()?;
        let unwritable = |source| StoreError::Json {
            path: path.clone(),
            source,
        };
        match name {
            Some(name) => {
                let name = to_raw_value(name).map_err(unwritable)?;
                config.insert(CURRENT.to_owned(), name);
            }
            None => {
                config.shift_remove(CURRENT);
            }
        }
        let mut text = Vec::new();
        let mut writer = Serializer::with_formatter(&mut text, PrettyFormatter::with_indent(b"\t"));
        config.serialize(&mut writer).map_err(unwritable)?;
        text.push(b'\n');
        make_dir(&self.dir, 0o700)?;
        write(&path, &text, 0o600)
    }

    /// The configuration, empty where there is none, and the file it is in.
    fn config(&self) -> Result<(PathBuf, Config), StoreError> {
        let path = self.dir.join("config.json");
        // It may be a link to where somebody keeps all such files.
        let path = fs::canonicalize(&path).unwrap_or(path);
        let Some(text) = read(&path)?.filter(|t| !t.is_empty()) else {
            return Ok((path, Config::new()));
        };
        match serde_json::from_slice(&text) {
            Ok(config) => Ok((path, config)),
            Err(source) => Err(StoreError::Json { path, source }),
        }
    }

    fn meta(&self, name: &str) -> Result<PathBuf, StoreError> {
        Ok(self.dir.join("contexts/meta").join(id(name)?))
    }

    fn tls(&self, name: &str) -> Result<PathBuf, StoreError> {
        Ok(self.dir.join("contexts/tls").join(id(name)?))
    }
}

/// The name of a context's directory.
fn id(name: &str) -> Result<String, StoreError> {
    let plain = |b: u8| b.is_ascii_alphanumeric();
    let bytes = name.as_bytes();
    let valid = bytes.len() >= 2
        && bytes.first().is_some_and(|b| plain(*b))
        && bytes.iter().all(|b| plain(*b) || b"_.+-".contains(b))
        && name != DEFAULT;
    if !valid {
        return Err(StoreError::Name(name.to_owned()));
    }
    Ok(Sha256::digest(bytes)
        .iter()
        .fold(String::new(), |mut hex, byte| {
            // Writing to a string never fails.
            let _ = write!(hex, "{byte:02x}");
            hex
        }))
}

fn failed(what: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |source| StoreError::Io { what, path, source }
}

/// A file's content, if it is there.
fn read(path: &Path) -> Result<Option<Vec<u8>>, StoreError> {
    use io::Read as _;
    let file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(failed("read", path)(e)),
    };
    let mut content = Vec::new();
    let mut limited = file.take(MAX_FILE + 1);
    let read = limited.read_to_end(&mut content);
    read.map_err(failed("read", path))?;
    if content.len() as u64 > MAX_FILE {
        return Err(failed("read", path)(io::ErrorKind::FileTooLarge.into()));
    }
    Ok(Some(content))
}

/// Writes a file so that it is whole or as it was. It keeps the mode it has, or gets this one.
fn write(path: &Path, content: &[u8], mode: u32) -> Result<(), StoreError> {
    let mode = fs::metadata(path).map_or(mode, |m| m.permissions().mode() & 0o7777);
    let dir = path.parent().unwrap_or(Path::new("."));
    let written = || -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(dir)?;
        file.as_file()
            .set_permissions(Permissions::from_mode(mode))?;
        file.write_all(content)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|e| e.error)?;
        File::open(dir)?.sync_all()
    };
    written().map_err(failed("write", path))
}

fn make_dir(dir: &Path, mode: u32) -> Result<(), StoreError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(dir);
    made.map_err(failed("make", dir))
}

/// Removes a directory with all in it; tells whether it was there.
fn remove(dir: &Path) -> Result<bool, StoreError> {
    match fs::remove_dir_all(dir) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(failed("remove", dir)(e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(dir: &Path) -> Store {
        let dir = dir.display().to_string();
        Store::find(|name| (name == "DOCKER_CONFIG").then(|| dir.clone())).unwrap()
    }

    #[test]
    fn a_context_is_what_docker_writes() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        assert_eq!(store.get("slicer").unwrap(), None);
        let context = Context::new("slicer", "a VM", "unix:///run/d.sock");
        store.put(&context).unwrap();
        // printf slicer | sha256sum
        let id = "de46c90600c90e19042decf2cedf8dbb05ee7f2d5a867d6fa670f84c54d6114c";
        let meta = fs::read_to_string(dir.path().join(format!("contexts/meta/{id}/meta.json")));
        assert_eq!(
            meta.unwrap(),
            r#"{"Name":"slicer","Metadata":{"Description":"a VM"},"Endpoints":{"docker":{"Host":"unix:///run/d.sock","SkipTLSVerify":false}}}"#
        );
        assert_eq!(store.get("slicer").unwrap(), Some(context));
        // What another one's daemon was trusted by is not this one's.
        let tls = dir.path().join(format!("contexts/tls/{id}/docker"));
        fs::create_dir_all(&tls).unwrap();
        store
            .put(&Context::new("slicer", "", "tcp://127.0.0.1:1"))
            .unwrap();
        assert!(!tls.exists());
        assert_eq!(
            store.get("slicer").unwrap().unwrap().host(),
            "tcp://127.0.0.1:1"
        );
        assert!(store.remove("slicer").unwrap());
        assert!(!store.remove("slicer").unwrap());
        assert_eq!(store.get("slicer").unwrap(), None);
    }

    #[test]
    fn contexts_of_others_are_read() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        store.put(&Context::new("slicer", "", "x")).unwrap();
        let path = store.meta("slicer").unwrap().join("meta.json");
        for (text, host) in [
            (
                r#"{"Name":"slicer","Metadata":{"Foo":1},"Endpoints":{"docker":{"Host":"ssh://a"},"k8s":{}}}"#,
                "ssh://a",
            ),
            (r#"{"Name":"slicer"}"#, ""),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(store.get("slicer").unwrap().unwrap().host(), host);
        }
        fs::write(&path, "{").unwrap();
        assert!(matches!(store.get("slicer"), Err(StoreError::Json { .. })));
    }

    #[test]
    fn selecting_changes_nothing_else_of_the_configuration() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(dir.path());
        let path = dir.path().join("config.json");
        let before = "{\n\t\"zeta\": 1e400,\n\t\"auths\": {\n\t\t\"b\": {},\n\t\t\"a\": {}\n\t},\n\t\
                      \"credsStore\": \"pass\"\n}";
        fs::write(&path, before).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o640)).unwrap();
        assert_eq!(store.selected().unwrap(), None);
        store.select(Some("slicer")).unwrap();
        assert_eq!(store.selected().unwrap().as_deref(), Some("slicer"));
        let after = before.replace(
            "\"pass\"\n",
            "\"pass\",\n\t\"currentContext\": \"slicer\"\n",
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), after + "\n");
        let mode = || fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
        assert_eq!(mode(), 0o640);
        store.select(None).unwrap();
        let after = fs::read_to_string(&path).unwrap();
        assert_eq!(after, format!("{before}\n"));
        // Nothing to change, nothing written.
        fs::write(&path, "{ \"currentContext\" :\"default\"}").unwrap();
        store.select(None).unwrap();
        let after = fs::read_to_string(&path).unwrap();
        assert_eq!(after, "{ \"currentContext\" :\"default\"}");
        // In place of what was selected before, and where it stood.
        fs::write(&path, "{\"currentContext\":\"a\",\"b\":2}").unwrap();
        store.select(Some("slicer")).unwrap();
        let after = fs::read_to_string(&path).unwrap();
        assert_eq!(
            after,
            "{\n\t\"currentContext\": \"slicer\",\n\t\"b\": 2\n}\n"
        );
        assert_eq!(mode(), 0o640);
    }

    #[test]
    fn a_configuration_that_is_not_there_is_made_and_one_that_is_wrong_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let store = store(&dir.path().join("new"));
        store.select(Some("slicer")).unwrap();
        let path = dir.path().join("new/config.json");
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!(text, "{\n\t\"currentContext\": \"slicer\"\n}\n");
        let mode = fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o7777, 0o600);
        for wrong in ["[]", "{", "{\"currentContext\":1}", "\"x\""] {
            fs::write(&path, wrong).unwrap();
            let refused = store.select(Some("other"));
            assert!(matches!(refused, Err(StoreError::Json { .. })), "{wrong}");
            assert_eq!(fs::read_to_string(&path).unwrap(), wrong);
        }
        // A link to the file stays one.
        let kept = dir.path().join("kept.json");
        fs::rename(&path, &kept).unwrap();
        fs::write(&kept, "{}").unwrap();
        std::os::unix::fs::symlink(&kept, &path).unwrap();
        store.select(Some("slicer")).unwrap();
        assert!(fs::symlink_metadata(&path).unwrap().is_symlink());
        assert!(fs::read_to_string(&kept).unwrap().contains("slicer"));
    }

    #[test]
    fn names_are_those_docker_takes() {
        for name in ["slicer", "a1", "0.x_+-"] {
            assert_eq!(id(name).unwrap().len(), 64, "{name}");
        }
        for name in ["", "a", "default", "-a", "a/b", "..", "a b", "ä1"] {
            assert!(matches!(id(name), Err(StoreError::Name(_))), "{name}");
        }
    }

    #[test]
    fn the_directory_is_dockers() {
        let with = |vars: &[(&str, &str)]| {
            Store::find(|name| {
                let found = vars.iter().find(|(n, _)| *n == name);
                found.map(|(_, v)| (*v).to_owned())
            })
        };
        let home = with(&[("HOME", "/h"), ("DOCKER_CONFIG", "")]);
        assert_eq!(home.unwrap().dir, Path::new("/h/.docker"));
        let given = with(&[("HOME", "/h"), ("DOCKER_CONFIG", "/d")]);
        assert_eq!(given.unwrap().dir, Path::new("/d"));
        assert!(matches!(with(&[]), Err(StoreError::NoHome)));
    }
}
