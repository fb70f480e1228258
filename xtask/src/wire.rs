//! Our wire as tables, to compare with the recorded facts.
//!
//! The format is that of `crates/api/wire`: tab separated, one header line; `methods.tsv` keeps
//! the order of each service, the other two are sorted by message (enum) and number.

use std::collections::BTreeMap;
use std::path::Path;

use prost_types::field_descriptor_proto::{Label, Type};
use prost_types::{DescriptorProto, EnumDescriptorProto, FieldDescriptorProto, FileDescriptorSet};

use crate::{Result, codegen};

const METHODS_HEADER: &str = "service\tmethod\trequest\tresponse";
const FIELDS_HEADER: &str = "message\tnumber\tname\ttype\tlabel\tdeprecated";
const ENUMS_HEADER: &str = "enum\tnumber\tname";

/// The three tables, each a list of lines with the header first.
#[derive(Debug, Default)]
pub(crate) struct Tables {
    /// Lines of `methods.tsv`.
    pub methods: Vec<String>,
    /// Lines of `fields.tsv`.
    pub fields: Vec<String>,
    /// Lines of `enums.tsv`.
    pub enums: Vec<String>,
}

/// Writes the tables into `dir`.
pub(crate) fn run(dir: &Path) -> Result<()> {
    let tables = tables(&codegen::descriptors()?);
    std::fs::create_dir_all(dir)?;
    for (name, lines) in
        [("methods", &tables.methods), ("fields", &tables.fields), ("enums", &tables.enums)]
    {
        std::fs::write(dir.join(format!("{name}.tsv")), lines.join("\n") + "\n")?;
    }
    Ok(())
}

/// The tables of `set`.
pub(crate) fn tables(set: &FileDescriptorSet) -> Tables {
    let mut found = Found::default();
    // What is ours alone has no recorded facts.
    let recorded = |package: &str| package != "google.protobuf" && !package.starts_with("gantry.");
    let ours = || set.file.iter().filter(|f| recorded(f.package()));
    for file in ours() {
        let package = file.package();
        for message in &file.message_type {
            found.message(package, message);
        }
        for one in &file.enum_type {
            found.enumeration(package, one);
        }
    }
    let mut methods = vec![METHODS_HEADER.to_owned()];
    for file in ours() {
        for service in &file.service {
            for m in &service.method {
                methods.push(format!(
                    "{}.{}\t{}\t{}\t{}",
                    file.package(),
                    service.name(),
                    m.name(),
                    side(m.client_streaming(), m.input_type()),
                    side(m.server_streaming(), m.output_type()),
                ));
            }
        }
    }
    Tables {
        methods,
        fields: lines(FIELDS_HEADER, found.fields),
        enums: lines(ENUMS_HEADER, found.enums),
    }
}

fn lines(header: &str, rows: BTreeMap<(String, i32), String>) -> Vec<String> {
    std::iter::once(header.to_owned()).chain(rows.into_values()).collect()
}

fn side(streamed: bool, name: &str) -> String {
    let name = name.trim_start_matches('.');
    if streamed { format!("stream {name}") } else { name.to_owned() }
}

/// Rows by (message or enum, number), which is the order of the tables.
#[derive(Default)]
struct Found {
    fields: BTreeMap<(String, i32), String>,
    enums: BTreeMap<(String, i32), String>,
}

impl Found {
    fn message(&mut self, scope: &str, message: &DescriptorProto) {
        let name = format!("{scope}.{}", message.name());
        if message.field.is_empty() {
            self.fields.insert((name.clone(), 0), format!("{name}\t\t(no fields)\t\t\t"));
        }
        for field in &message.field {
            let (kind, label) = kind_and_label(message, field);
            let deprecated = field.options.as_ref().is_some_and(|o| o.deprecated());
            self.fields.insert(
                (name.clone(), field.number()),
                format!(
                    "{name}\t{}\t{}\t{kind}\t{label}\t{}",
                    field.number(),
                    field.name(),
                    if deprecated { "deprecated" } else { "" },
                ),
            );
        }
        for nested in &message.nested_type {
            let is_map = nested.options.as_ref().is_some_and(|o| o.map_entry());
            if !is_map {
                self.message(&name, nested);
            }
        }
        for nested in &message.enum_type {
            self.enumeration(&name, nested);
        }
    }

    fn enumeration(&mut self, scope: &str, one: &EnumDescriptorProto) {
        let name = format!("{scope}.{}", one.name());
        for value in &one.value {
            self.enums.insert(
                (name.clone(), value.number()),
                format!("{name}\t{}\t{}", value.number(), value.name()),
            );
        }
    }
}

fn kind_and_label(message: &DescriptorProto, field: &FieldDescriptorProto) -> (String, String) {
    if let Some(entry) = map_entry(message, field) {
        let [key, value] = entry.field.as_slice() else {
            unreachable!("a map entry has a key and a value");
        };
        return (format!("map<{},{}>", kind(key), kind(value)), "map".to_owned());
    }
    let label = if field.label() == Label::Repeated {
        "repeated".to_owned()
    } else if field.proto3_optional() {
        "optional".to_owned()
    } else if let Some(index) = field.oneof_index {
        let index = usize::try_from(index).expect("protox numbers them from 0");
        format!("oneof:{}", message.oneof_decl[index].name())
    } else {
        String::new()
    };
    (kind(field), label)
}

/// The hidden message of a map field.
fn map_entry<'a>(
    message: &'a DescriptorProto,
    field: &FieldDescriptorProto,
) -> Option<&'a DescriptorProto> {
    let last = field.type_name().rsplit('.').next()?;
    message
        .nested_type
        .iter()
        .find(|n| n.name() == last && n.options.as_ref().is_some_and(|o| o.map_entry()))
}

fn kind(field: &FieldDescriptorProto) -> String {
    match field.r#type() {
        Type::Message | Type::Enum | Type::Group => {
            field.type_name().trim_start_matches('.').to_owned()
        }
        // `TYPE_UINT32` => `uint32`: the names of scalars are the words of the language.
        scalar => scalar.as_str_name().trim_start_matches("TYPE_").to_lowercase(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::root;

    fn recorded(name: &str) -> Vec<String> {
        let path = root().join("crates/api/wire").join(name);
        let text = std::fs::read_to_string(path).expect("the facts are committed");
        text.lines().map(str::to_owned).collect()
    }

    fn sorted(mut lines: Vec<String>) -> Vec<String> {
        lines.sort();
        lines
    }

    #[test]
    fn our_wire_is_the_recorded_one() {
        let ours = tables(&codegen::descriptors().expect("compiles"));
        for (name, lines) in
            [("methods.tsv", ours.methods), ("fields.tsv", ours.fields), ("enums.tsv", ours.enums)]
        {
            let (ours, facts) = (sorted(lines), sorted(recorded(name)));
            for line in &facts {
                assert!(ours.binary_search(line).is_ok(), "{name}: missing {line:?}");
            }
            for line in &ours {
                assert!(facts.binary_search(line).is_ok(), "{name}: not in the facts {line:?}");
            }
            assert_eq!(ours.len(), facts.len(), "{name}");
        }
    }

    /// `TaskClient::named` and `TaskServer::named` of the api crate rest on this.
    #[test]
    fn task_v2_and_v3_differ_by_name_only() {
        let ours = tables(&codegen::descriptors().expect("compiles"));
        for lines in [&ours.methods, &ours.fields] {
            let of = |package: &str| -> Vec<String> {
                lines
                    .iter()
                    .filter(|l| l.starts_with(package))
                    .map(|l| l.replace(package, "task"))
                    .collect()
            };
            assert_eq!(of("containerd.task.v2."), of("containerd.task.v3."));
        }
    }
}
