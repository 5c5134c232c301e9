//! The models: how large each is, and what it takes to load and to run.
//!
//! ```
//! use mrm_simulate::catalogue::Catalogue;
//! let text = "model,bytes,load_s,exec_s\nresnet50,98000000,2.6,0.05\n";
//! let models = Catalogue::read("models.csv".as_ref(), text.as_bytes())?;
//! assert_eq!(models.find("resnet50").map(|model| model.load_us), Some(2_600_000));
//! # Ok::<(), mrm_simulate::catalogue::BadInput>(())
//! ```

pub use crate::text::BadInput;

use crate::text::{Lines, seconds_us, whole};
use std::collections::HashMap;
use std::io::Read;
use std::path::Path;

/// Most models that are read.
pub const MODELS_MAX: usize = 1 << 20;

/// A model.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Model {
    /// Its name in the trace.
    pub name: String,
    /// What it takes in memory, at least one byte.
    pub bytes: u64,
    /// What it takes to load it from where it is kept, in microseconds.
    pub load_us: u64,
    /// For how long a request holds it, in microseconds.
    pub exec_us: u64,
}

/// All that are known.
#[derive(Debug, Clone, Default)]
pub struct Catalogue {
    models: Vec<Model>,
    by_name: HashMap<String, usize>,
}

impl Catalogue {
    /// Reads `model,bytes,load_s,exec_s`, with that line at its head; gzip or not.
    ///
    /// # Errors
    /// The line that is wrong: no size, a negative or infinite time, a name that came before.
    pub fn read(file: &Path, from: impl Read) -> Result<Self, BadInput> {
        let mut lines = Lines::new(file, from)?;
        let head = lines.next_line()?.unwrap_or_default();
        if head != "model,bytes,load_s,exec_s" {
            let what = "it has to begin with the line `model,bytes,load_s,exec_s`";
            return Err(BadInput::whole(file, what));
        }
        let mut all = Self::default();
        while let Some(line) = lines.next_line()? {
            let model = model_of(line);
            model
                .and_then(|model| all.add(model))
                .map_err(|what| lines.wrong(what))?;
        }
        if all.models.is_empty() {
            return Err(BadInput::whole(file, "it names no model"));
        }
        Ok(all)
    }

    /// Adds one.
    ///
    /// # Errors
    /// In words: it has no size, or its name is taken.
    pub fn add(&mut self, model: Model) -> Result<(), String> {
        if model.bytes == 0 {
            return Err(format!("model `{}` has a size of zero", model.name));
        }
        if self.models.len() >= MODELS_MAX {
            return Err(format!("more than {MODELS_MAX} models"));
        }
        if self.by_name.contains_key(&model.name) {
            return Err(format!("model `{}` came before", model.name));
        }
        self.by_name.insert(model.name.clone(), self.models.len());
        self.models.push(model);
        Ok(())
    }

    /// All of them, in their order.
    #[must_use]
    pub fn models(&self) -> &[Model] {
        &self.models
    }

    /// The one of this name.
    #[must_use]
    pub fn find(&self, name: &str) -> Option<&Model> {
        self.models.get(*self.by_name.get(name)?)
    }
}

fn model_of(line: &str) -> Result<Model, String> {
    let fields: Vec<&str> = line.split(',').collect();
    let [name, bytes, load_s, exec_s] = fields[..] else {
        return Err(format!(
            "{} fields instead of model,bytes,load_s,exec_s",
            fields.len()
        ));
    };
    if name.is_empty() {
        return Err("the model has no name".to_owned());
    }
    Ok(Model {
        name: name.to_owned(),
        bytes: whole("bytes", bytes)?,
        load_us: seconds_us("load_s", load_s)?,
        exec_us: seconds_us("exec_s", exec_s)?,
    })
}
