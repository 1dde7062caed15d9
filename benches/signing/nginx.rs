//! nginx, as fast as it is with files: what it serves stays open, and nothing is logged.

use std::fmt::Write as _;
use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, getuid, kill_process};
use tempfile::TempDir;

use crate::common::http::Answer;

/// Where `tests/setup bench` puts it if the system has none.
const BROUGHT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/target/test-tools/nginx/usr/sbin/nginx");
const START_MAX: Duration = Duration::from_secs(10);

/// What an answer of Keyward's says besides, and a cache or a browser needs. `ETag` and `Content-Length` are nginx's own.
const HEADERS: [&str; 3] = ["cache-control", "access-control-allow-origin", "x-content-type-options"];

/// One worker, which serves one document at one path.
pub(crate) struct Nginx {
    master: Child,
    address: String,
    _dir: TempDir,
}

impl Nginx {
    /// Serves at `path` what Keyward `answer`ed.
    ///
    /// # Errors
    /// There is no nginx, or it does not start.
    pub(crate) fn start(path: &str, answer: &Answer) -> Result<Self, String> {
        let dir = tempfile::Builder::new().prefix("keyward-nginx-").tempdir().map_err(|error| error.to_string())?;
        // The system's choice; nobody else asks for it in the moment until nginx does.
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        let address = free.map_err(|error| error.to_string())?.to_string();
        prepare(dir.path(), &address, path, answer).map_err(|error| format!("{}: {error}", dir.path().display()))?;
        let program = if Path::new(BROUGHT).exists() { BROUGHT } else { "nginx" };
        let mut command = Command::new(program);
        command.arg("-p").arg(dir.path()).args(["-e", "stderr", "-c", "nginx.conf"]).stdin(Stdio::null());
        let master =
            command.spawn().map_err(|error| format!("{program}, which `tests/setup bench` brings: {error}"))?;
        let mut nginx = Self { master, address, _dir: dir };
        let end = Instant::now() + START_MAX;
        while TcpStream::connect(&nginx.address).is_err() {
            if Instant::now() > end || nginx.master.try_wait().is_ok_and(|status| status.is_some()) {
                return Err("nginx does not start".into());
            }
            thread::sleep(Duration::from_millis(10));
        }
        Ok(nginx)
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.master.id()
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // It ends its worker before it ends itself.
        let _ = kill_process(Pid::from_child(&self.master), Signal::TERM);
        let _ = self.master.wait();
    }
}

fn prepare(dir: &Path, address: &str, path: &str, answer: &Answer) -> std::io::Result<()> {
    let file = dir.join("files").join(path.trim_start_matches('/'));
    fs::create_dir_all(file.parent().unwrap_or(dir))?;
    fs::write(file, &answer.body)?;
    let mut headers = String::new();
    for name in HEADERS {
        writeln!(headers, "      add_header {name} \"{}\";", answer.header(name)).expect("a String takes all");
    }
    // A worker of root's would be nobody, who may not read here.
    let user = if getuid().is_root() { "user root;" } else { "" };
    let content_type = answer.header("content-type");
    fs::write(
        dir.join("nginx.conf"),
        format!(
            "daemon off;
worker_processes 1;
{user}
pid nginx.pid;
error_log stderr crit;
events {{}}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  open_file_cache max=100;
  keepalive_requests 1000000000;
  client_body_temp_path body;
  proxy_temp_path proxy;
  fastcgi_temp_path fastcgi;
  uwsgi_temp_path uwsgi;
  scgi_temp_path scgi;
  server {{
    listen {address};
    root files;
    location / {{
      types {{}}
      default_type {content_type};
{headers}    }}
  }}
}}
"
        ),
    )
}
