//! `demo --keep`: files with the secret and a body, and commands to try with them.

use std::{
    fs::{self, DirBuilder, OpenOptions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use crate::webhook::{event::Event, secret::Secret};

/// The event that the commands send.
const EVENT: &str = "environment_revision_created";

/// A private folder below the system's temporary one. Removed on drop.
#[derive(Debug)]
pub(super) struct Files {
    folder: PathBuf,
}

impl Files {
    /// Writes the secret and a body, readable by this user only.
    pub(super) fn write(secret: &Secret) -> io::Result<Self> {
        let folder = std::env::temp_dir().join(format!("hookgate-demo-{:08x}", fastrand::u32(..)));
        // It must not exist yet: somebody else's folder is not private.
        DirBuilder::new().mode(0o700).create(&folder)?;
        let files = Self { folder };
        let body = Event::find(EVENT).map(Event::sample_body).unwrap_or_default();
        files.create("secret", secret.as_key())?;
        files.create("body.json", body.as_bytes())?;
        Ok(files)
    }

    fn create(&self, name: &str, content: &[u8]) -> io::Result<()> {
        let path = self.folder.join(name);
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content)
    }

    /// Commands to paste into a POSIX shell.
    pub(super) fn commands(&self, webhook: &str, ops: &str) -> String {
        let folder = quoted(&self.folder);
        let kind = Event::find(EVENT).map_or("", Event::sample_kind);
        let post = |signature: &str| {
            format!(
                r#"curl -isS {webhook} \
  -H 'Content-Type: application/json' \
  -H "Pulumi-Webhook-ID: demo-$(openssl rand -hex 8)" \
  -H 'Pulumi-Webhook-Kind: {kind}' \
  -H "Pulumi-Webhook-Signature: {signature}" \
  --data-binary @{folder}/body.json"#
            )
        };
        let signed = post("$signature");
        let forged = post("$(openssl rand -hex 32)");
        format!(
            r#"# a signed delivery: 200, forwarded
signature=$(openssl dgst -sha256 -hmac "$(cat {folder}/secret)" {folder}/body.json | sed 's/.*= //')
{signed}

# a forged one: 401, bad_signature
{forged}

# what was counted
curl -s {ops}/metrics | grep hookgate_requests_total | grep -v ' 0$'"#
        )
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // What cannot be removed stays in the temporary folder, readable by this user only.
        fs::remove_dir_all(&self.folder).unwrap_or(());
    }
}

/// A path as a word of a POSIX shell.
fn quoted(path: &Path) -> String {
    let text = path.display().to_string();
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "/._-".contains(c)) {
        text
    } else {
        format!("'{}'", text.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn files_are_private_and_do_not_stay() {
        let secret = Secret::try_new(b"demo-secret".to_vec(), true).unwrap();
        let files = Files::write(&secret).unwrap();
        let folder = files.folder.clone();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&folder), 0o700);
        assert_eq!(mode(&folder.join("secret")), 0o600);
        assert_eq!(fs::read(folder.join("secret")).unwrap(), b"demo-secret");
        let commands = files.commands("http://127.0.0.1:1/webhooks/pulumi", "http://127.0.0.1:2");
        assert!(!commands.contains("demo-secret"), "{commands}");
        drop(files);
        assert!(!folder.exists());
    }

    #[test]
    fn odd_folders_are_quoted() {
        assert_eq!(quoted(Path::new("/tmp/a-b_c.1")), "/tmp/a-b_c.1");
        assert_eq!(quoted(Path::new("/tmp/it's here")), r"'/tmp/it'\''s here'");
    }
}
