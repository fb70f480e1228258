//! Marking: pure over nodes and edges.

use std::collections::HashSet;
use std::hash::Hash;

use gantry_errdefs::Result;

/// Adds to `live` everything reachable from `grey`. What is in `live` already is black: its edges
/// are not followed again. `edges` pushes the nodes that one refers to.
///
/// # Errors
/// What `edges` returns; `live` is then not complete.
pub(crate) fn mark<N: Eq + Hash + Clone>(
    grey: impl IntoIterator<Item = N>,
    live: &mut HashSet<N>,
    edges: &mut dyn FnMut(&N, &mut Vec<N>) -> Result<()>,
) -> Result<()> {
    let mut stack: Vec<N> = grey.into_iter().collect();
    let mut next = Vec::new();
    while let Some(node) = stack.pop() {
        if live.contains(&node) {
            continue;
        }
        edges(&node, &mut next)?;
        live.insert(node);
        stack.extend(next.drain(..).filter(|n| !live.contains(n)));
    }
    Ok(())
}

/// Orders `nodes` so that each comes before what it refers to, as far as there are no circles. A
/// sweep in this order leaves nothing that refers to a gap.
///
/// # Errors
/// What `edges` returns.
pub(crate) fn referrers_first<N: Eq + Hash + Clone>(
    nodes: Vec<N>,
    edges: &mut dyn FnMut(&N, &mut Vec<N>) -> Result<()>,
) -> Result<Vec<N>> {
    enum Step<N> {
        Enter(N),
        Leave(N),
    }
    let all: HashSet<N> = nodes.iter().cloned().collect();
    let mut seen = HashSet::with_capacity(all.len());
    let mut order = Vec::with_capacity(all.len());
    let mut next = Vec::new();
    for node in nodes {
        let mut stack = vec![Step::Enter(node)];
        while let Some(step) = stack.pop() {
            match step {
                Step::Enter(node) => {
                    if !seen.insert(node.clone()) {
                        continue;
                    }
                    edges(&node, &mut next)?;
                    stack.push(Step::Leave(node));
                    let inside = next.drain(..).filter(|n| all.contains(n) && !seen.contains(n));
                    stack.extend(inside.map(Step::Enter));
                }
                Step::Leave(node) => order.push(node),
            }
        }
    }
    order.reverse();
    Ok(order)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn graph(edges: &[(u32, u32)]) -> impl FnMut(&u32, &mut Vec<u32>) -> Result<()> {
        let mut map: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (from, to) in edges {
            map.entry(*from).or_default().push(*to);
        }
        move |node, out| {
            out.extend(map.get(node).into_iter().flatten());
            Ok(())
        }
    }

    #[test]
    fn marks_what_is_reachable_circles_included() {
        let mut edges = graph(&[(1, 2), (2, 3), (3, 1), (4, 5), (6, 6)]);
        let mut live = HashSet::new();
        mark([1, 6], &mut live, &mut edges).unwrap();
        assert_eq!(live, HashSet::from([1, 2, 3, 6]));
        mark([4], &mut live, &mut edges).unwrap();
        assert!(live.contains(&5));
    }

    #[test]
    fn orders_referrers_first() {
        let edges = [(1, 2), (1, 3), (2, 4), (3, 4), (5, 1), (4, 9)];
        let order = referrers_first(vec![4, 2, 3, 1, 5], &mut graph(&edges)).unwrap();
        assert_eq!(order.len(), 5);
        let at = |n| order.iter().position(|x| *x == n).unwrap();
        for (from, to) in edges.into_iter().filter(|(_, to)| *to != 9) {
            assert!(at(from) < at(to), "{order:?}");
        }
    }
}
