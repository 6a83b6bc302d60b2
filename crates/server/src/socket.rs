//! A Unix domain socket that only its user can open.

use std::fs::{DirBuilder, Permissions};
use std::os::unix::fs::{DirBuilderExt as _, FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use consort_core::{Error, ErrorKind, Result};
use tokio::net::{UnixListener, UnixStream};

use crate::identity;
use crate::serve::failed;

/// Listens on a path. The file goes when this is dropped.
#[derive(Debug)]
pub(crate) struct Socket {
    listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Makes the socket. It is made in a folder that nobody else can enter and moved to its place with permissions 0600, so
    /// that at no moment somebody else can open it. A socket that nobody listens on any more is replaced.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`]: somebody listens there, or something else is there. Else what the system says.
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        let at = |error: Error| error.with_context("socket", path.display().to_string());
        let refuse = |message: &str| Error::new(ErrorKind::InvalidConfig, message).with_operation("server::socket");
        match std::fs::symlink_metadata(path) {
            Ok(found) if !found.file_type().is_socket() => {
                return Err(at(refuse("something that is no socket is there already")));
            }
            Ok(_) if std::os::unix::net::UnixStream::connect(path).is_ok() => {
                return Err(at(refuse("another server listens on this socket")));
            }
            _ => {}
        }
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let private = folder.join(identity::name(".consort-"));
        DirBuilder::new()
            .mode(0o700)
            .create(&private)
            .map_err(|source| at(failed("the socket cannot be made", source)))?;
        let made = Self::make(&private.join("s"), path);
        // Empty by now, or holding a socket that could not be moved.
        let _ = std::fs::remove_dir_all(&private);
        let listener = made.map_err(|source| at(failed("the socket cannot be made", source)))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    fn make(private: &Path, path: &Path) -> std::io::Result<UnixListener> {
        let listener = UnixListener::bind(private)?;
        std::fs::set_permissions(private, Permissions::from_mode(0o600))?;
        std::fs::rename(private, path)?;
        Ok(listener)
    }

    /// The next connection.
    pub(crate) async fn accept(&self) -> std::io::Result<UnixStream> {
        self.listener.accept().await.map(|(stream, _)| stream)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Whoever took it away before has done what we would.
        let _ = std::fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[tokio::test]
    async fn only_its_user_can_open_it_and_it_goes_with_the_server() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("consort.sock");
        let socket = Socket::bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let (client, server) = tokio::join!(UnixStream::connect(&path), socket.accept());
        client.unwrap();
        server.unwrap();
        assert_eq!(Socket::bind(&path).unwrap_err().kind(), ErrorKind::InvalidConfig);
        drop(socket);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_file_is_not() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("consort.sock");
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        drop(Socket::bind(&path).unwrap());
        std::fs::write(&path, "mine").unwrap();
        assert_eq!(Socket::bind(&path).unwrap_err().kind(), ErrorKind::InvalidConfig);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "mine");
    }
}
