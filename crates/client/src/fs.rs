//! The file system of a VM.

use crate::client::{Call, vm_path};
use crate::{Client, ClientError};
use hyper::Method;
use slicer_api::{FsEntry, FsQuery, MakeDirectory};

impl Client {
    /// `GET /vm/{h}/fs/readdir`: the entries of a directory, by name.
    pub async fn read_directory(
        &self,
        hostname: &str,
        path: &str,
    ) -> Result<Vec<FsEntry>, ClientError> {
        let target = vm_path(hostname, "/fs/readdir");
        self.fetch_list(Call::get(&target).query(FsQuery::path_query(path)))
            .await
    }

    /// `GET /vm/{h}/fs/stat`: what is at a path; status 404 when nothing is.
    pub async fn stat(&self, hostname: &str, path: &str) -> Result<FsEntry, ClientError> {
        let target = vm_path(hostname, "/fs/stat");
        self.fetch(Call::get(&target).query(FsQuery::path_query(path)))
            .await
    }

    /// `POST /vm/{h}/fs/mkdir`: makes a directory, which the default user owns.
    pub async fn make_directory(
        &self,
        hostname: &str,
        directory: &MakeDirectory,
    ) -> Result<(), ClientError> {
        let target = vm_path(hostname, "/fs/mkdir");
        self.call(Call::post(&target).json(directory)?)
            .await
            .map(drop)
    }

    /// `DELETE /vm/{h}/fs/remove`: removes a file, or a directory, which must be empty unless
    /// `recursive`.
    pub async fn remove_path(
        &self,
        hostname: &str,
        path: &str,
        recursive: bool,
    ) -> Result<(), ClientError> {
        let target = vm_path(hostname, "/fs/remove");
        let query = FsQuery {
            path: path.to_owned(),
            recursive,
        };
        self.call(Call::new(Method::DELETE, &target).query(query.to_query()))
            .await
            .map(drop)
    }
}
