//! The filter `tojson` of chat templates: what Python's `json.dumps` writes.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, State, Value};

use super::python::refused;

/// How deep lists and objects may stand in each other.
const DEPTH: usize = 100;

/// `value | tojson`, with the options that transformers has for it. They go by their names.
pub(super) fn filter(state: &State, value: &Value, options: Kwargs) -> Result<String, Error> {
    let separators: Option<Vec<String>> = options.get("separators")?;
    let indent: Option<usize> = options.get("indent")?;
    let (between, behind_key) = match separators.as_deref() {
        None if indent.is_some() => (",", ": "),
        None => (", ", ": "),
        Some([between, behind_key]) => (between.as_str(), behind_key.as_str()),
        Some(_) => return Err(refused("the separators of tojson are two texts".into())),
    };
    let mut writer = Writer {
        state,
        between,
        behind_key,
        indent,
        is_ascii: options
            .get::<Option<bool>>("ensure_ascii")?
            .unwrap_or(false),
        is_sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        depth: 0,
        json: String::new(),
    };
    options.assert_all_used()?;
    writer.write(value)?;
    Ok(writer.json)
}

struct Writer<'a> {
    /// Knows how much may be written.
    state: &'a State<'a, 'a>,
    between: &'a str,
    behind_key: &'a str,
    /// Spaces at each depth; none: all stands in one line.
    indent: Option<usize>,
    /// Letters beyond ASCII are written as numbers.
    is_ascii: bool,
    is_sorted: bool,
    depth: usize,
    json: String,
}

impl Writer<'_> {
    fn write(&mut self, value: &Value) -> Result<(), Error> {
        self.spend(0)?;
        match value.kind() {
            ValueKind::None => self.json += "null",
            ValueKind::Bool => self.json += if value.is_true() { "true" } else { "false" },
            ValueKind::Number => self.json += &value.to_string(),
            ValueKind::String => self.text(value.as_str().unwrap_or_default())?,
            ValueKind::Seq | ValueKind::Iterable => {
                let entries = value.try_iter()?.map(|entry| (None, entry));
                self.group(['[', ']'], entries.collect())?;
            }
            ValueKind::Map => {
                let mut entries = Vec::new();
                for key in value.try_iter()? {
                    let entry = value.get_item(&key)?;
                    entries.push((Some(key.to_string()), entry));
                }
                if self.is_sorted {
                    entries.sort_by(|left, right| left.0.cmp(&right.0));
                }
                self.group(['{', '}'], entries)?;
            }
            kind => return Err(refused(format!("a value of kind {kind} has no JSON"))),
        }
        Ok(())
    }

    fn group(
        &mut self,
        around: [char; 2],
        entries: Vec<(Option<String>, Value)>,
    ) -> Result<(), Error> {
        self.depth += 1;
        if self.depth > DEPTH {
            return Err(refused(format!("JSON is at most {DEPTH} deep")));
        }
        self.json.push(around[0]);
        let is_empty = entries.is_empty();
        for (number, (key, entry)) in entries.into_iter().enumerate() {
            if number > 0 {
                self.json += self.between;
            }
            self.line()?;
            if let Some(key) = key {
                self.text(&key)?;
                self.json += self.behind_key;
            }
            self.write(&entry)?;
        }
        self.depth -= 1;
        if !is_empty {
            self.line()?;
        }
        self.json.push(around[1]);
        Ok(())
    }

    /// A new line, where there are any.
    fn line(&mut self) -> Result<(), Error> {
        if let Some(indent) = self.indent {
            let spaces = indent.saturating_mul(self.depth);
            self.spend(spaces)?;
            self.json.push('\n');
            self.json.extend(std::iter::repeat_n(' ', spaces));
        }
        Ok(())
    }

    fn text(&mut self, text: &str) -> Result<(), Error> {
        self.spend(text.len())?;
        let quoted = serde_json::Value::from(text).to_string();
        if !self.is_ascii {
            self.json += &quoted;
            return Ok(());
        }
        for letter in quoted.chars() {
            if letter.is_ascii() {
                self.json.push(letter);
                continue;
            }
            for unit in letter.encode_utf16(&mut [0; 2]) {
                self.json += &format!("\\u{unit:04x}");
            }
        }
        Ok(())
    }

    /// Refuses what would be too much, before it is there.
    fn spend(&self, bytes: usize) -> Result<(), Error> {
        self.state.consume_fuel(1 + bytes as u64 / 8)
    }
}
