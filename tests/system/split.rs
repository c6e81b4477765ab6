//! Traffic splits, HTTP and TCP, and their live change.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use anyhow::{Result, ensure};
use libtest_mimic::Trial;
use oxmesh_tests::{
    eventually,
    mesh::{Planes, TestMesh},
    shop,
};

use crate::{matrix, ours};

pub(crate) fn trials(trials: &mut Vec<Trial>) {
    matrix(trials, "a client gets only 200s and both versions near half of 1000 requests", None, half_and_half);
    matrix(trials, "a split edited to 100/0 takes effect with no failed request", None, edited);
    ours(trials, "a TCP split reaches both versions", None, tcp);
}

const STORE: &str = "http://store.shop/books";

/// Of 1000 fair draws the share of one side is within 50 ± 6 % in all but one of 6,000 runs (3.8 standard deviations).
async fn half_and_half(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    mesh.both_versions_serve().await?;
    let load = mesh.load("client", STORE, 500, 2.0).await?;
    load.all_ok(990)?;
    for version in ["store-v1", "store-v2"] {
        let share = load.from(version);
        ensure!((440..=560).contains(&share), "{version} answered {share} of {}: {load:?}", load.total());
    }
    mesh.no_nacks().await
}

async fn edited(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    mesh.both_versions_serve().await?;
    let under_load = mesh.load("client", STORE, 200, 4.0);
    let edit = async {
        tokio::time::sleep(Duration::from_secs(1)).await;
        mesh.write("split.yaml", &shop::split(100, 0))
    };
    let (load, edited) = tokio::join!(under_load, edit);
    edited?;
    load?.all_ok(780)?;
    let after = mesh.load("client", STORE, 200, 1.0).await?;
    after.all_ok(190)?;
    ensure!(after.from("store-v2") == 0, "v2 still answers after the edit: {after:?}");
    mesh.no_nacks().await
}

async fn tcp(planes: Planes) -> Result<()> {
    let mesh = TestMesh::start(&shop::files(), planes).await?;
    // The server that speaks first says who it is. A version whose endpoints the client has not heard of closes at once.
    let seen = RefCell::new(BTreeSet::new());
    eventually("both versions answer", Duration::from_secs(30), || async {
        let said = banner(&mesh, "client", "store.shop", 3306).await?;
        seen.borrow_mut().insert(said);
        ensure!(seen.borrow().len() == 2, "only {seen:?}");
        Ok(())
    })
    .await?;
    let mut counted: BTreeMap<String, u32> = BTreeMap::new();
    for _ in 0..40 {
        *counted.entry(banner(&mesh, "client", "store.shop", 3306).await?).or_default() += 1;
    }
    ensure!(counted.len() == 2, "40 connections were answered by {counted:?}");
    Ok(())
}

/// The first line of a server that speaks first.
pub(crate) async fn banner(mesh: &TestMesh, from: &str, host: &str, port: u16) -> Result<String> {
    let script = format!("exec 3<>/dev/tcp/{host}/{port} && read -r -t 5 line <&3 && echo \"$line\"");
    Ok(mesh.shop(from)?.pod().exec(&["bash", "-c", &script]).await?.trim().to_owned())
}
