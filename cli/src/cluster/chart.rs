//! The Helm chart that comes with the program.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use tempfile::TempDir;

/// Paths below the chart's folder, and what the files hold.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/chart.rs"));

/// A chart in the file system: the program's own, for as long as this lives, or the user's.
pub(super) struct Chart {
    path: PathBuf,
    _own: Option<TempDir>,
}

impl Chart {
    /// The chart at `path`, or the one that comes with the program.
    pub(super) fn new(path: Option<&Path>) -> anyhow::Result<Self> {
        if let Some(path) = path {
            anyhow::ensure!(path.exists(), "--osm-chart-path: there is no {}", path.display());
            return Ok(Self { path: path.to_owned(), _own: None });
        }
        let folder = tempfile::tempdir().context("making a folder for the chart")?;
        for (name, text) in FILES {
            let file = folder.path().join(name);
            let parent = file.parent().context("a chart's file has a folder")?;
            fs::create_dir_all(parent).with_context(|| format!("making {}", parent.display()))?;
            fs::write(&file, text).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(Self { path: folder.path().to_owned(), _own: Some(folder) })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }
}

/// The kinds that the program's chart installs.
pub(super) fn kinds() -> anyhow::Result<Vec<CustomResourceDefinition>> {
    let files = FILES.iter().filter(|(name, _)| name.starts_with("crds/"));
    let documents = files.flat_map(|(name, text)| text.split("\n---").map(move |document| (name, document)));
    documents
        .filter(|(_, document)| document.lines().any(|line| line.starts_with("kind:")))
        .map(|(name, document)| serde_saphyr::from_str(document).with_context(|| format!("the chart's {name}")))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_chart_is_written_whole() {
        let chart = Chart::new(None).unwrap();
        for (name, text) in FILES {
            assert_eq!(&fs::read_to_string(chart.path().join(name)).unwrap(), text, "{name}");
        }
        assert!(chart.path().join("Chart.yaml").exists());
        assert!(chart.path().join("templates/deployment.yaml").exists());
    }

    #[test]
    fn chart_and_program_have_one_version() {
        let (_, text) = FILES.iter().find(|(name, _)| *name == "Chart.yaml").unwrap();
        assert!(text.contains(&format!("\nversion: {}\n", env!("CARGO_PKG_VERSION"))));
        assert!(text.contains(&format!("\nappVersion: {}\n", env!("CARGO_PKG_VERSION"))));
    }

    #[test]
    fn every_kind_of_the_chart_can_be_read() {
        let names: Vec<_> = kinds().unwrap().into_iter().filter_map(|kind| kind.metadata.name).collect();
        let files = FILES.iter().filter(|(name, _)| name.starts_with("crds/")).count();
        assert!(names.len() >= files, "{names:?} in {files} files");
    }
}
