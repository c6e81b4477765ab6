use std::{
    collections::BTreeSet,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::Path,
    sync::Arc,
    time::{Duration, SystemTime},
};

use clap::Parser as _;
use rcgen::{CertificateParams, CertificateSigningRequestParams, KeyPair, SanType};
use tokio::{sync::Notify, time::timeout};

use super::{
    Directory, Held, Options,
    ask::Answer,
    request::{self, KeyAndRequest},
};
use crate::{args::Args, config::tls::Secret, tls::testing::Ca, xds::sds_file::Files};

const NAME: &str = "osm-controller.osm-system.svc.cluster.local";

/// A key with certificates as the control plane would sign them.
fn held(ca: &Ca) -> Held {
    let KeyAndRequest { key_pem, csr_pem } = request::make().unwrap();
    let request = CertificateSigningRequestParams::from_pem(&csr_pem).unwrap();
    let sign = |dns: &str| {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::DnsName(dns.try_into().unwrap())];
        params.not_after = (SystemTime::now() + Duration::from_secs(3600)).into();
        params.signed_by(&request.public_key, ca.issuer()).unwrap().pem()
    };
    let answer = Answer { sidecar: sign("u.sidecar.a.b.td"), service: sign("a.b.td"), trust_bundle: ca.pem() };
    Held::new(key_pem, answer).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        fs::read_dir(directory).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn the_key_is_readable_by_its_owner_alone_and_stands_in_one_place() {
    let (ca, temporary) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let path = temporary.path().join("identity");
    let directory = Directory::open(&path, NAME).unwrap();
    directory.put(&held(&ca)).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let generation = path.join(fs::read_link(path.join("..data")).unwrap());
    assert_eq!((mode(&path), mode(&generation), mode(&generation.join("key.pem"))), (0o700, 0o700, 0o600));
    let with_key = |directory: &Path| {
        let texts = names(directory).into_iter().filter_map(|name| fs::read_to_string(directory.join(name)).ok());
        texts.filter(|text| text.contains("PRIVATE KEY")).count()
    };
    assert_eq!((with_key(&path), with_key(&generation)), (0, 1));
}

#[test]
fn a_new_generation_replaces_the_old_one_whole_and_the_one_before_stays_for_its_readers() {
    let (ca, temporary) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let directory = Directory::open(temporary.path(), NAME).unwrap();
    let generations = || names(temporary.path()).into_iter().filter(|name| name.starts_with("..2")).count();
    for expected in [1, 2, 2, 2] {
        let held = held(&ca);
        directory.put(&held).unwrap();
        assert_eq!(generations(), expected);
        let text = fs::read_to_string(temporary.path().join("service_cert_sds_secret.yaml")).unwrap();
        let current = fs::read_link(temporary.path().join("..data")).unwrap();
        let own = format!("{}/", temporary.path().join(current).display());
        assert_eq!(text.matches(&own).count(), 2, "{text}");
        assert_eq!(directory.load().unwrap().not_after, held.not_after);
    }
    let left: Vec<String> = names(temporary.path()).into_iter().filter(|name| !name.starts_with("..2")).collect();
    let expected = [
        "..data",
        "service_cert_sds_secret.yaml",
        "tls_certificate_sds_secret.yaml",
        "validation_context_sds_secret.yaml",
    ];
    assert_eq!(left, expected);
}

#[test]
fn what_an_interrupted_process_left_is_no_hindrance() {
    let (ca, temporary) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let directory = Directory::open(temporary.path(), NAME).unwrap();
    directory.put(&held(&ca)).unwrap();
    fs::create_dir(temporary.path().join("..2020-01-01T00:00:00.000000000Z")).unwrap();
    std::os::unix::fs::symlink("nowhere", temporary.path().join("..data.new")).unwrap();
    fs::write(temporary.path().join("..data/key.pem"), "garbage").unwrap();
    assert!(directory.load().is_none());
    directory.put(&held(&ca)).unwrap();
    assert!(directory.load().is_some());
    assert_eq!(names(temporary.path()).len(), 4 + 2);
}

#[test]
fn answers_that_do_not_fit_the_key_or_are_no_certificates_are_refused() {
    let ca = Ca::new("ca");
    let KeyAndRequest { key_pem, .. } = request::make().unwrap();
    let foreign = String::from_utf8(ca.named("a.b.td").chain_pem.to_vec()).unwrap();
    let answer = |chain: &str, bundle: &str| Answer {
        sidecar: chain.to_owned(),
        service: chain.to_owned(),
        trust_bundle: bundle.to_owned(),
    };
    for (answer, wanted) in [
        (answer(&foreign, &ca.pem()), "does not belong to the first certificate"),
        (answer("", &ca.pem()), "holds no certificate"),
        (answer("garbage", &ca.pem()), "holds no certificate"),
    ] {
        let why = Held::new(key_pem.clone(), answer).unwrap_err();
        assert!(why.contains(wanted), "{why}");
    }
    let own = KeyPair::from_pem(&key_pem).unwrap();
    let fitting = CertificateParams::default().signed_by(&own, ca.issuer()).unwrap().pem();
    for bundle in ["", "garbage"] {
        Held::new(key_pem.clone(), answer(&fitting, bundle)).unwrap_err();
    }
}

#[tokio::test]
async fn watchers_see_files_that_come_late_and_every_swap_and_never_a_pair_that_does_not_fit() {
    let (ca, temporary) = (Ca::new("ca"), tempfile::tempdir().unwrap());
    let directory = Directory::open(temporary.path(), NAME).unwrap();
    let changed = Arc::new(Notify::new());
    let files = Files::new(Arc::clone(&changed));
    let file = |name: &str| temporary.path().join(name);
    let (tls, service) = (file("tls_certificate_sds_secret.yaml"), file("service_cert_sds_secret.yaml"));
    let validation = file("validation_context_sds_secret.yaml");
    files.want(&BTreeSet::from([tls.clone(), service.clone(), validation.clone()]));
    assert_eq!(files.faults().len(), 3);
    let watch = tokio::spawn(files.clone().watch());
    // The watcher has to be there before the first file; its poll would see it too, but later.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let mut last = None;
    for _ in 0..5 {
        let begun = tokio::time::Instant::now();
        directory.put(&held(&ca)).unwrap();
        loop {
            timeout(Duration::from_secs(30), changed.notified()).await.unwrap();
            let now = files.secret(&service, "service-cert");
            if now.is_some() && now != last {
                last = now;
                break;
            }
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "seen by the poll only");
        assert!(files.faults().is_empty(), "{:?}", files.faults());
        let (Some(Secret::Certificate(sidecar)), Some(Secret::Certificate(service))) =
            (files.secret(&tls, "tls_sds").as_deref().cloned(), last.as_deref().cloned())
        else {
            panic!("certificates are missing");
        };
        assert_eq!(sidecar.key_pem, service.key_pem);
        assert!(matches!(files.secret(&validation, "validation_context_sds").as_deref(), Some(Secret::Validation(_))));
    }
    watch.abort();
}

#[test]
fn flags_that_do_not_fit_are_refused_in_words() {
    let ca = Ca::new("ca").pem();
    let read = |line: &str, bundle: Option<&str>| {
        let words = std::iter::once("oxmesh-proxy").chain(line.split_whitespace());
        let args = Args::try_parse_from(words).map_err(|e| e.to_string())?;
        Options::read(&args, bundle.map(str::to_owned)).map_err(|e| format!("{e:#}"))
    };
    assert_eq!(read("", None), Ok(None));
    let rest = "--identity-token /t --identity-dir /d";
    let good = read(&format!("--identity-server https://osm-controller.osm-system.svc:15129 {rest}"), Some(&ca));
    let good = good.unwrap().unwrap();
    assert_eq!(
        (good.host.as_str(), good.port, good.name.as_str()),
        ("osm-controller.osm-system.svc", 15129, &*good.host)
    );
    let v6 = read(&format!("--identity-server https://[::1]:1 --identity-server-name n {rest}"), Some(&ca));
    let v6 = v6.unwrap().unwrap();
    assert_eq!((v6.host.as_str(), v6.name.as_str()), ("::1", "n"));
    for (line, bundle, wanted) in [
        (format!("--identity-server https://h:1 {rest}"), None, "OXMESH_TRUST_BUNDLE"),
        (format!("--identity-server https://h:1 {rest}"), Some("garbage"), "no certificate in it"),
        (format!("--identity-server http://h:1 {rest}"), Some(&*ca), "is not https://HOST:PORT"),
        (format!("--identity-server h {rest}"), Some(&*ca), "is not https://HOST:PORT"),
        (format!("--identity-server https://h:1/x {rest}"), Some(&*ca), "is not https://HOST:PORT"),
        ("--identity-server https://h:1".to_owned(), Some(&*ca), "--identity-token"),
        ("--identity-dir /d".to_owned(), None, "--identity-server"),
    ] {
        let why = read(&line, bundle).unwrap_err();
        assert!(why.contains(wanted), "{line}: {why}");
    }
}
