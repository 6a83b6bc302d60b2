//! Servers that we start, wait for, and end.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use consort_core::{Error, ErrorKind, Result};

use super::http::{HttpConfig, HttpTarget, agent};
use super::target::{About, Beats, Process, Target};
use super::workload::Ask;

/// How much of a log an error shows, in bytes.
const LOG_TAIL: u64 = 2000;
/// How long a peer may take to end when it is asked to.
const GRACE: Duration = Duration::from_secs(5);

/// A server as a command.
///
/// ```
/// use consort_bench::live::PeerConfig;
///
/// # fn main() -> consort_core::Result<()> {
/// let peer: PeerConfig = "llama=llama-server -m {model} --port {port} -t {threads}".parse()?;
/// assert_eq!((peer.name.as_str(), peer.command.len()), ("llama", 7));
/// # Ok(())
/// # }
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct PeerConfig {
    /// The name by which the report calls it.
    pub name: String,
    /// Program and arguments, with `{port}`, `{model}` and other variables in braces.
    pub command: Vec<String>,
}

impl std::str::FromStr for PeerConfig {
    type Err = Error;

    /// Reads `name=COMMAND`; quotes keep blanks together, as in a shell, and nothing else of a shell is known.
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |message: &str| {
            Err(Error::new(ErrorKind::InvalidConfig, message)
                .with_operation("bench::peer")
                .with_context("peer", text.to_owned()))
        };
        let Some((name, command)) = text.split_once('=') else {
            return refuse("a peer is given as name=COMMAND");
        };
        let Some(command) = shlex::split(command).filter(|words| !words.is_empty()) else {
            return refuse("the command is empty, or a quote in it is not closed");
        };
        if name.trim().is_empty() {
            return refuse("a peer has a name");
        }
        if !command.iter().any(|word| word.contains("{port}")) {
            return refuse("the command must say {port} where the port stands, so that it can be reached");
        }
        Ok(Self { name: name.trim().to_owned(), command })
    }
}

impl PeerConfig {
    /// The command with its variables filled in.
    ///
    /// # Errors
    /// [`ErrorKind::InvalidConfig`] that names a variable which has no value.
    pub fn filled(&self, variables: &BTreeMap<String, String>) -> Result<Vec<String>> {
        self.command.iter().map(|word| fill(word, variables)).collect()
    }
}

fn fill(word: &str, variables: &BTreeMap<String, String>) -> Result<String> {
    let mut text = String::new();
    let mut rest = word;
    while let Some((before, after)) = rest.split_once('{') {
        text.push_str(before);
        let name = after.split_once('}').filter(|(name, _)| {
            !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-')
        });
        match name {
            Some((name, after)) => {
                let value = variables.get(name).ok_or_else(|| {
                    Error::new(ErrorKind::InvalidConfig, "the peer's command names a variable that has no value")
                        .with_operation("bench::peer")
                        .with_context("variable", name.to_owned())
                })?;
                text.push_str(value);
                rest = after;
            }
            // A brace of JSON, perhaps.
            None => {
                text.push('{');
                rest = after;
            }
        }
    }
    text.push_str(rest);
    Ok(text)
}

/// A running peer. Dropping it ends the process.
#[derive(Debug)]
pub struct Peer {
    target: HttpTarget,
    running: Running,
}

/// A process that ends when this is dropped, with or without a panic.
#[derive(Debug)]
struct Running {
    child: Child,
    log: PathBuf,
    command: Vec<String>,
}

impl Peer {
    /// Starts the command on a free port of this machine, waits until it answers, and connects. What it prints goes to
    /// `log`.
    ///
    /// # Errors
    /// [`ErrorKind::NotFound`] for a program that is not there, [`ErrorKind::Remote`] when it ends or does not answer within
    /// `patience`: the error shows the end of its log.
    pub fn start(
        config: &PeerConfig,
        variables: &BTreeMap<String, String>,
        http: HttpConfig,
        log: &Path,
        patience: Duration,
    ) -> Result<Self> {
        let port = free_port()?;
        let mut variables = variables.clone();
        variables.insert("port".into(), port.to_string());
        let command = config.filled(&variables)?;
        let io = |source| Error::io(log, source);
        let out = File::create(log).map_err(io)?;
        let errors = out.try_clone().map_err(io)?;
        let (program, arguments) = command.split_first().ok_or_else(|| {
            Error::new(ErrorKind::InvalidConfig, "the peer's command is empty").with_operation("bench::peer")
        })?;
        let child = Command::new(program)
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(out)
            .stderr(errors)
            .spawn()
            .map_err(|source| Error::io(Path::new(program), source).with_operation("bench::peer"))?;
        // From here on the child ends whatever happens.
        let mut running = Running { child, log: log.to_owned(), command: command.clone() };
        let url = format!("http://127.0.0.1:{port}");
        running.wait(&url, patience)?;
        let mut http = HttpConfig { name: config.name.clone(), url, ..http };
        http.settings.insert("command".into(), shown(&command));
        variables.remove("port");
        http.settings.extend(variables.into_iter().map(|(key, value)| (key, last_part(&value).to_owned())));
        let process = Process::Child(running.child.id());
        let target = HttpTarget::connect(http, process).map_err(|error| running.with_log(error))?;
        Ok(Self { target, running })
    }

    /// The instruction sets that the server's log names (`system_info` of llama.cpp), where it names any.
    #[must_use]
    pub fn instruction_sets(&self) -> Vec<String> {
        let text = std::fs::read(&self.running.log).unwrap_or_default();
        instruction_sets(&String::from_utf8_lossy(&text))
    }
}

impl Running {
    /// Waits until the server says that it is ready. llama-server and vLLM have `/health`; whoever has not is ready when it
    /// lists its models.
    fn wait(&mut self, url: &str, patience: Duration) -> Result<()> {
        let agent = agent(Duration::from_secs(10));
        let ready = |path: &str| {
            let answer = agent.get(format!("{url}{path}")).call();
            answer.map(|response| response.status().as_u16()).ok()
        };
        let start = Instant::now();
        while start.elapsed() < patience {
            if let Ok(Some(status)) = self.child.try_wait() {
                let error = Error::new(ErrorKind::Remote, "the peer ended before it answered");
                return Err(self.with_log(error.with_context("status", status.to_string())));
            }
            let healthy = matches!(ready("/health"), Some(200 | 404 | 405));
            if healthy && ready("/v1/models") == Some(200) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
        let error = Error::new(ErrorKind::Remote, "the peer did not answer in time");
        Err(self.with_log(error.with_context("seconds", patience.as_secs().to_string())))
    }

    fn with_log(&self, error: Error) -> Error {
        error
            .with_operation("bench::peer")
            .with_context("command", shown(&self.command))
            .with_context("log", self.log.display().to_string())
            .with_context("its end", tail(&self.log))
    }
}

/// The command without the folders of this machine.
fn shown(command: &[String]) -> String {
    command.iter().map(|word| last_part(word)).collect::<Vec<_>>().join(" ")
}

fn last_part(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or_default()
}

fn free_port() -> Result<u16> {
    let bound = TcpListener::bind(("127.0.0.1", 0)).and_then(|listener| listener.local_addr());
    bound.map(|address| address.port()).map_err(|source| {
        Error::new(ErrorKind::Io, "no port is free").with_operation("bench::peer").with_source(source)
    })
}

fn tail(path: &Path) -> String {
    let mut bytes = Vec::new();
    if let Ok(mut file) = File::open(path) {
        let length = file.metadata().map_or(0, |found| found.len());
        if file.seek(SeekFrom::Start(length.saturating_sub(LOG_TAIL))).is_ok() {
            drop(file.take(LOG_TAIL).read_to_end(&mut bytes));
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// `system_info: n_threads = 2 | CPU : SSE3 = 1 | AVX2 = 1 | ...`
fn instruction_sets(log: &str) -> Vec<String> {
    let Some(line) = log.lines().find(|line| line.contains("system_info")) else { return Vec::new() };
    let parts = line.split(['|', ':', ',']).filter_map(|part| part.split_once('='));
    let on = parts.filter(|(_, value)| value.trim() == "1").map(|(name, _)| name.trim().to_owned());
    on.filter(|name| name.chars().any(|c| c.is_ascii_uppercase())).collect()
}

impl Target for Peer {
    fn about(&self) -> &About {
        self.target.about()
    }

    fn ask(&self, ask: &Ask, pictures: &[std::sync::Arc<[u8]>]) -> Result<Beats> {
        self.target.ask(ask, pictures)
    }

    fn process(&self) -> Process {
        self.target.process()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        ask_to_end(&self.child);
        let start = Instant::now();
        while start.elapsed() < GRACE {
            if !matches!(self.child.try_wait(), Ok(None)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        if let Err(error) = self.child.kill().and_then(|()| self.child.wait().map(drop)) {
            tracing::warn!(pid = self.child.id(), %error, "a peer could not be ended");
        }
    }
}

/// SIGTERM by its own id. Where that does not exist, it is killed after the grace.
fn ask_to_end(child: &Child) {
    #[cfg(unix)]
    if let Some(pid) = i32::try_from(child.id()).ok().and_then(rustix::process::Pid::from_raw) {
        // It may be gone already.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    }
    #[cfg(not(unix))]
    let _ = child;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn commands_are_split_and_filled() {
        let peer: PeerConfig = "a=prog --port {port} -m '{model}' --x {\"y\":{threads}}".parse().unwrap();
        let variables =
            [("port", "1"), ("model", "a b.gguf"), ("threads", "2")].map(|(key, value)| (key.into(), value.into()));
        let filled = peer.filled(&variables.into()).unwrap();
        assert_eq!(filled, ["prog", "--port", "1", "-m", "a b.gguf", "--x", "{y:2}"]);
        let missing = peer.filled(&BTreeMap::from([("port".into(), "1".into())])).unwrap_err();
        assert!(missing.to_string().contains("variable: model"), "{missing}");
        for wrong in ["prog {port}", "a=", "=x {port}", "a=prog", "a=prog '{port}"] {
            assert_eq!(wrong.parse::<PeerConfig>().unwrap_err().kind(), ErrorKind::InvalidConfig, "{wrong}");
        }
    }

    #[test]
    fn instruction_sets_are_those_that_are_on() {
        let log = "x\nsystem_info: n_threads = 2 (n_threads_batch = 2) / 2 | CPU : SSE3 = 1 | AVX2 = 1 | AVX512 = 0 | OPENMP = 1 |\n";
        assert_eq!(instruction_sets(log), ["SSE3", "AVX2", "OPENMP"]);
        assert!(instruction_sets("nothing").is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn a_peer_that_dies_or_hangs_is_told_with_its_log_and_ended() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        let start = |command: &str, patience: u64| {
            let peer: PeerConfig = command.parse().unwrap();
            Peer::start(&peer, &BTreeMap::new(), HttpConfig::new("", ""), &log, Duration::from_millis(patience))
                .unwrap_err()
        };
        let error = start("x=sh -c 'echo no model {port}; exit 3'", 5000);
        assert_eq!(error.kind(), ErrorKind::Remote);
        assert!(error.to_string().contains("no model"), "{error}");
        let pid = folder.path().join("pid");
        let error = start(&format!("x=sh -c 'echo $$ > {}; exec sleep 100 # {{port}}'", pid.display()), 300);
        assert!(error.to_string().contains("in time"), "{error}");
        let pid = std::fs::read_to_string(pid).unwrap();
        assert!(!Path::new(&format!("/proc/{}", pid.trim())).exists());
        assert_eq!(start("x=/no/such/program {port}", 100).kind(), ErrorKind::NotFound);
    }
}
