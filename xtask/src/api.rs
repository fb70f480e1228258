//! The public API of the libraries, as a text that is committed.
//!
//! A crate's `pub` items are its API: the lint `unreachable_pub` sees to it that nothing else is
//! `pub`. Each is a line with its module, in order, so that a change of the API is a change of
//! the text, and shows in review.

use std::path::{Path, PathBuf};

use proc_macro2::{TokenStream, TokenTree};
use quote::ToTokens;
use syn::{ImplItem, Item, Visibility};

use crate::Result;

/// The crates whose API is kept.
const CRATES: &[&str] = &["client", "libcontainerd"];

/// Writes the listings, or with `check` fails when one is stale.
pub(crate) fn run(root: &Path, check: bool) -> Result<()> {
    for name in CRATES {
        let path = root.join("docs/api").join(format!("gantry-{name}.txt"));
        let listing = listing(&root.join("crates").join(name).join("src"))?;
        if !check {
            std::fs::create_dir_all(root.join("docs/api"))?;
            std::fs::write(&path, listing)?;
        } else if std::fs::read_to_string(&path).unwrap_or_default() != listing {
            let path = path.display();
            return Err(format!("{path} is stale: run `cargo xtask api` and look at it").into());
        }
    }
    Ok(())
}

/// The API of the crate whose sources are in `src`.
fn listing(src: &Path) -> Result<String> {
    let mut files = Vec::new();
    collect(src, &mut files)?;
    let mut lines = Vec::new();
    for file in files {
        let module = file.strip_prefix(src)?.with_extension("");
        let module = module.to_string_lossy().replace('/', "::");
        let parsed = syn::parse_file(&std::fs::read_to_string(&file)?)?;
        for item in &parsed.items {
            list(&module, item, &mut lines);
        }
    }
    // Implementations for types of the crate's own use are no part of it.
    let known: Vec<String> = lines
        .iter()
        .filter_map(|line| line.split_once(": struct ").or_else(|| line.split_once(": enum ")))
        .map(|(_, rest)| rest.chars().take_while(|c| c.is_alphanumeric()).collect())
        .collect();
    lines.retain(|line| {
        let Some((_, of)) = line.split_once(": impl ").and_then(|(_, l)| l.split_once(" for "))
        else {
            return true;
        };
        let name: String = of.chars().take_while(|c| c.is_alphanumeric()).collect();
        known.contains(&name)
    });
    lines.sort();
    lines.push(String::new());
    Ok(lines.join("\n"))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "rs") && !path.ends_with("tests.rs") {
            files.push(path);
        }
    }
    files.sort();
    Ok(())
}

fn is_pub(visibility: &Visibility) -> bool {
    matches!(visibility, Visibility::Public(_))
}

/// Tokens as one line, without the documentation.
fn text(tokens: &impl ToTokens) -> String {
    tokens.to_token_stream().to_string()
}

/// The names at the top of a macro's tokens, without the documentation.
fn names(tokens: TokenStream) -> String {
    let mut names = Vec::new();
    for token in tokens {
        if let TokenTree::Ident(name) = token {
            names.push(name.to_string());
        }
    }
    names.join(" ")
}

fn list(module: &str, item: &Item, lines: &mut Vec<String>) {
    let mut add = |what: String| lines.push(format!("{module}: {what}"));
    match item {
        Item::Use(one) if is_pub(&one.vis) => add(format!("use {}", text(&one.tree))),
        Item::Mod(one) if is_pub(&one.vis) => add(format!("mod {}", one.ident)),
        Item::Fn(one) if is_pub(&one.vis) => add(text(&one.sig)),
        Item::Const(one) if is_pub(&one.vis) => {
            add(format!("const {}: {}", one.ident, text(&one.ty)));
        }
        Item::Type(one) if is_pub(&one.vis) => {
            add(format!("type {} = {}", one.ident, text(&one.ty)));
        }
        Item::Struct(one) if is_pub(&one.vis) => {
            add(format!("struct {}{}", one.ident, text(&one.generics)));
            for field in one.fields.iter().filter(|f| is_pub(&f.vis)) {
                let name = field.ident.as_ref().map_or_else(|| "0".to_owned(), text);
                add(format!("struct {}.{name}: {}", one.ident, text(&field.ty)));
            }
        }
        Item::Enum(one) if is_pub(&one.vis) => {
            add(format!("enum {}{}", one.ident, text(&one.generics)));
            for variant in &one.variants {
                let fields: Vec<String> = variant.fields.iter().map(|f| text(&f.ty)).collect();
                add(format!("enum {}::{}({})", one.ident, variant.ident, fields.join(", ")));
            }
        }
        Item::Trait(one) if is_pub(&one.vis) => {
            add(format!("trait {}", one.ident));
            for inner in &one.items {
                if let syn::TraitItem::Fn(method) = inner {
                    add(format!("trait {}: {}", one.ident, text(&method.sig)));
                }
            }
        }
        Item::Impl(one) => {
            let of = text(&one.self_ty);
            if let Some((_, name, _)) = &one.trait_ {
                add(format!("impl {} for {of}", text(name)));
            }
            for inner in &one.items {
                match inner {
                    ImplItem::Fn(method) if is_pub(&method.vis) => {
                        add(format!("{of}::{}", text(&method.sig)));
                    }
                    ImplItem::Const(one) if is_pub(&one.vis) => {
                        add(format!("{of}::const {}", one.ident));
                    }
                    _ => {}
                }
            }
        }
        // What macros declare is declared by the tokens they are given.
        Item::Macro(one) if one.ident.is_none() => {
            add(format!("{}! {}", text(&one.mac.path), names(one.mac.tokens.clone())));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_listings_are_those_of_the_sources() {
        run(&crate::root(), true).expect("up to date");
    }
}
