//! What a delivery is measured against: nginx with one worker serving a folder over TLS 1.3, as Debian configures it otherwise.

use crate::process::{Daemon, cpu_seconds};
use crate::{Outcome, failed};
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;

/// A running nginx.
pub(crate) struct Nginx {
    master: Daemon,
    port: u16,
    certificate: PathBuf,
}

/// A port that was free a moment ago.
pub(crate) fn free_port() -> Outcome<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

impl Nginx {
    /// Starts it in `folder` to serve the files of `files`.
    pub(crate) fn start(folder: &Path, files: &Path) -> Outcome<Self> {
        fs::create_dir_all(folder)?;
        let made = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])?;
        let (certificate, key) = (folder.join("certificate.pem"), folder.join("key.pem"));
        fs::write(&certificate, made.cert.pem())?;
        fs::write(&key, made.signing_key.serialize_pem())?;
        let port = free_port()?;
        let configuration = folder.join("nginx.conf");
        fs::write(&configuration, configure(folder, files, port))?;
        let log = folder.join("stderr.log");
        let mut command = Command::new("nginx");
        command.arg("-p").arg(folder).arg("-c").arg(&configuration).arg("-e").arg(folder.join("error.log"));
        let master = Daemon::start_silent(&mut command, &log, || TcpStream::connect(("127.0.0.1", port)).is_ok())?;
        Ok(Self { master, port, certificate })
    }

    /// CPU seconds of its worker so far.
    pub(crate) fn cpu(&self) -> Outcome<f64> {
        let master = self.master.pid();
        let children = fs::read_to_string(format!("/proc/{master}/task/{master}/children"))?;
        let worker = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        cpu_seconds(worker.ok_or_else(|| failed("nginx has no worker"))?)
    }

    /// curl that fetches a file of the folder.
    pub(crate) fn curl(&self, name: &str, to: &Path) -> Command {
        let mut command = Command::new("curl");
        command.args(["--silent", "--show-error", "--fail", "--noproxy", "*", "--cacert"]).arg(&self.certificate);
        command.arg("-o").arg(to).arg(format!("https://127.0.0.1:{}/{name}", self.port));
        command
    }
}

fn configure(folder: &Path, files: &Path, port: u16) -> String {
    let (folder, files) = (folder.display(), files.display());
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|kind| format!("    {kind}_temp_path {folder}/{kind};\n"))
        .collect();
    format!(
        "user root;\nworker_processes 1;\ndaemon off;\npid {folder}/nginx.pid;\nevents {{ worker_connections 64; }}\nhttp {{\n\
         {temporary}    access_log off;\n    sendfile on;\n    tcp_nopush on;\n    server {{\n        listen 127.0.0.1:{port} ssl;\n\
         \x20       ssl_certificate {folder}/certificate.pem;\n        ssl_certificate_key {folder}/key.pem;\n        ssl_protocols TLSv1.3;\n\
         \x20       root {files};\n    }}\n}}\n"
    )
}
