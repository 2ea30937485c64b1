//! The environment of the process, captured once: the only reader of `std::env`.
//!
//! Everything else takes an [`Environment`], so that tests give their own.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::error::ConfigError;
use super::values;

/// The variables, and the few other things about the process that the configuration depends on.
#[derive(Debug, Clone)]
pub struct Environment {
    variables: BTreeMap<String, String>,
    /// What follows the program's name.
    pub arguments: Vec<String>,
    /// Logical CPUs this process may run on.
    pub cpus: usize,
    /// What relative paths of the configuration are relative to.
    pub directory: PathBuf,
}

impl Environment {
    /// Of this process. A variable whose name or value is no UTF-8 counts as not set.
    pub fn capture() -> Self {
        let text = |(name, value): (std::ffi::OsString, std::ffi::OsString)| {
            Some((name.into_string().ok()?, value.into_string().ok()?))
        };
        Self {
            variables: std::env::vars_os().filter_map(text).collect(),
            arguments: std::env::args_os()
                .skip(1)
                .map(|it| it.to_string_lossy().into_owned())
                .collect(),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            directory: PathBuf::from("."),
        }
    }

    pub fn new<'a>(variables: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let owned = |(name, value): (&str, &str)| (name.to_owned(), value.to_owned());
        Self {
            variables: variables.into_iter().map(owned).collect(),
            arguments: Vec::new(),
            cpus: 1,
            directory: PathBuf::from("/nonexistent"),
        }
    }

    pub fn with_cpus(self, cpus: usize) -> Self {
        Self { cpus, ..self }
    }

    pub fn with_directory(self, directory: impl Into<PathBuf>) -> Self {
        Self {
            directory: directory.into(),
            ..self
        }
    }

    pub fn get(&self, name: &str) -> Option<&str> {
        self.variables.get(name).map(String::as_str)
    }

    /// For variables where the empty text means the same as not being set.
    pub fn get_filled(&self, name: &str) -> Option<&str> {
        self.get(name).filter(|value| !value.is_empty())
    }

    pub fn text_or(&self, name: &str, default: &str) -> String {
        self.get(name).unwrap_or(default).to_owned()
    }

    pub fn variables(&self) -> impl Iterator<Item = (&str, &str)> {
        self.variables
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// The variables of a prefix, by what follows it.
    pub fn prefixed<'a>(&'a self, prefix: &'a str) -> impl Iterator<Item = (&'a str, &'a str)> {
        self.variables()
            .filter_map(move |(name, value)| Some((name.strip_prefix(prefix)?, value)))
    }

    /// The value, if the variable is set; `parse` says what would be right when it is not.
    pub fn parse<T>(
        &self,
        name: &str,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        parse(value)
            .map(Some)
            .map_err(|reason| ConfigError::variable(name, value, reason))
    }

    pub fn parse_or<T>(
        &self,
        name: &str,
        default: T,
        parse: impl FnOnce(&str) -> Result<T, String>,
    ) -> Result<T, ConfigError> {
        Ok(self.parse(name, parse)?.unwrap_or(default))
    }

    pub fn flag_or(&self, name: &str, default: bool) -> Result<bool, ConfigError> {
        self.parse_or(name, default, values::flag)
    }
}
