//! Reading the kernel's books about a process, and the loaders.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};

/// A child process, killed when dropped.
pub(crate) struct Process(Child);

impl Process {
    /// Starts `command` on CPU `cpu`, its output going to `log`.
    pub(crate) fn start(cpu: u32, command: &[String], log: &Path) -> Result<Self> {
        let out = fs::File::create(log).with_context(|| format!("create {}", log.display()))?;
        let child = Command::new("taskset")
            .arg("-c")
            .arg(cpu.to_string())
            .args(command)
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .with_context(|| format!("start {}", command.join(" ")))?;
        Ok(Self(child))
    }

    /// Its process id (taskset replaces itself, so the id is the program's).
    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    /// Asks it to end, then waits; killed after 20 s.
    pub(crate) fn stop(mut self) -> Result<()> {
        Command::new("kill").arg("-TERM").arg(self.id().to_string()).status()?;
        let until = Instant::now() + Duration::from_secs(20);
        while Instant::now() < until {
            if self.0.try_wait()?.is_some() {
                return Ok(());
            }
            nap(50);
        }
        bail!("process {} did not end within 20 s of SIGTERM", self.id())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Already gone is fine.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// On-CPU nanoseconds of all threads of these processes and of their children (worker processes).
pub(crate) fn cpu_ns(pids: &[u32]) -> Result<u64> {
    let mut sum = 0;
    for pid in pids {
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            sum += text.split(' ').next().and_then(|n| n.parse::<u64>().ok()).unwrap_or(0);
        }
    }
    Ok(sum)
}

/// The process and its direct children.
pub(crate) fn family(pid: u32) -> Vec<u32> {
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    std::iter::once(pid).chain(children.split_whitespace().filter_map(|c| c.parse().ok())).collect()
}

/// Resident memory in KiB.
pub(crate) fn rss_kib(pids: &[u32]) -> u64 {
    pids.iter()
        .filter_map(|pid| fs::read_to_string(format!("/proc/{pid}/status")).ok())
        .filter_map(|text| {
            text.lines().find_map(|l| l.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok())
        })
        .sum()
}

/// Waits until something listens on 127.0.0.1:`port`.
pub(crate) fn wait_for_port(port: u16) -> Result<()> {
    let until = Instant::now() + Duration::from_secs(20);
    while Instant::now() < until {
        if std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() {
            return Ok(());
        }
        nap(20);
    }
    bail!("nothing listens on 127.0.0.1:{port} after 20 s")
}

/// What a loader saw.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// Requests answered well.
    pub(crate) requests: u64,
    /// Requests answered badly or not at all.
    pub(crate) failed: u64,
    /// Requests per second.
    pub(crate) rate: f64,
    /// Median latency in microseconds.
    pub(crate) p50_us: f64,
}

/// HTTP/1.1 load by wrk: 32 connections, closed loop.
pub(crate) fn wrk(port: u16, seconds: u32) -> Result<Load> {
    let text = output(
        "taskset",
        &[
            "-c",
            "1",
            "wrk",
            "-t1",
            "-c32",
            &format!("-d{seconds}s"),
            "--latency",
            &format!("http://127.0.0.1:{port}/bench"),
        ],
    )?;
    let word_before = |needle: &str| text.lines().find(|l| l.contains(needle)).map(|l| l.trim().to_owned());
    let requests = word_before(" requests in ")
        .and_then(|l| l.split(' ').next()?.parse().ok())
        .with_context(|| format!("wrk said:\n{text}"))?;
    let rate = word_before("Requests/sec:").and_then(|l| l.split_whitespace().last()?.parse().ok()).unwrap_or(0.0);
    let p50_us = text.lines().find_map(|l| duration_us(l.trim().strip_prefix("50%")?)).unwrap_or(0.0);
    let bad = word_before("Non-2xx").and_then(|l| l.rsplit(' ').next()?.parse().ok()).unwrap_or(0);
    Ok(Load { requests, failed: bad, rate, p50_us })
}

/// gRPC-like unary load by h2load: 8 connections of 16 streams.
pub(crate) fn h2load(port: u16, seconds: u32, body: &Path) -> Result<Load> {
    let body = body.display().to_string();
    let text = output(
        "taskset",
        &[
            "-c",
            "1",
            "h2load",
            "-t1",
            "-c8",
            "-m16",
            &format!("-D{seconds}"),
            "-d",
            &body,
            "-H",
            "content-type: application/grpc",
            "-H",
            "te: trailers",
            &format!("http://127.0.0.1:{port}/bench.Bench/Unary"),
        ],
    )?;
    let line = text.lines().find(|l| l.starts_with("requests:")).with_context(|| format!("h2load said:\n{text}"))?;
    let number = |word: &str| -> Option<u64> {
        let part = line.split(',').find(|p| p.trim_end().ends_with(word))?;
        part.trim().trim_start_matches("requests:").trim().split(' ').next()?.parse().ok()
    };
    let rate = text
        .lines()
        .find_map(|l| l.strip_prefix("finished in")?.split(',').nth(1)?.trim().split(' ').next()?.parse().ok())
        .unwrap_or(0.0);
    let p50_us = text
        .lines()
        .find_map(|l| duration_us(l.strip_prefix("time for request:")?.split_whitespace().nth(2)?))
        .unwrap_or(0.0);
    Ok(Load { requests: number("succeeded").unwrap_or(0), failed: number("failed").unwrap_or(0), rate, p50_us })
}

/// Exactly `requests` requests over 4 connections, for the instruction counts: HTTP/1.1, or with a `body` gRPC of 16
/// streams a connection.
pub(crate) fn exactly(port: u16, requests: u32, body: Option<&Path>) -> Result<()> {
    let requests = requests.to_string();
    let mut words = vec!["-c", "1", "h2load", "-t1", "-c4", "-n", &requests];
    let url = match body {
        Some(_) => format!("http://127.0.0.1:{port}/bench.Bench/Unary"),
        None => format!("http://127.0.0.1:{port}/bench"),
    };
    let body = body.map(|body| body.display().to_string());
    match &body {
        Some(body) => words.extend(["-m16", "-d", body, "-H", "content-type: application/grpc", "-H", "te: trailers"]),
        None => words.push("--h1"),
    }
    words.push(&url);
    let text = output("taskset", &words)?;
    ensure!(text.contains(&format!("{requests} succeeded")), "not all of {requests} requests succeeded:\n{text}");
    Ok(())
}

/// Runs a command and gives its standard output.
pub(crate) fn output(program: &str, args: &[&str]) -> Result<String> {
    let out = Command::new(program).args(args).output().with_context(|| format!("run {program}"))?;
    ensure!(out.status.success(), "{program} {}: {}", args.join(" "), String::from_utf8_lossy(&out.stderr));
    Ok(String::from_utf8_lossy(&out.stdout).into_owned())
}

/// `1.23ms`, `456us`, `2.0s` in microseconds.
fn duration_us(text: &str) -> Option<f64> {
    let text = text.trim();
    let split = text.find(|c: char| !c.is_ascii_digit() && c != '.')?;
    let value: f64 = text[..split].parse().ok()?;
    Some(match &text[split..] {
        "us" => value,
        "ms" => value * 1e3,
        "s" => value * 1e6,
        _ => return None,
    })
}

/// The bench is not async; it waits for other processes.
#[expect(clippy::disallowed_methods, reason = "no worker to block: the bench's main thread only waits")]
pub(crate) fn nap(millis: u64) {
    std::thread::sleep(Duration::from_millis(millis));
}
