//! What is cached, by whole prefixes.

use std::collections::BTreeSet;

use pagedkv_core::TokenId;

use super::{Pair, first_visible};

impl Pair {
    /// Cached whole blocks, and the child of the last that can serve some more tokens.
    pub(super) fn find(
        &self,
        tenant: u32,
        prompt: &[TokenId],
        limit: usize,
    ) -> (usize, Option<(Vec<TokenId>, usize)>) {
        if !self.config.enable_prefix_caching {
            return (0, None);
        }
        let size = self.size();
        let is_known = |n: &usize| self.entries.contains(&(tenant, prompt[..n * size].to_vec()));
        let num_known = (1..=limit / size).take_while(is_known).count();
        let is_usable = |n: &usize| {
            self.config.groups.iter().enumerate().all(|(g, kind)| {
                (first_visible(*kind, n * size) / size..*n).all(|column| {
                    self.pool.holder(&(tenant, g, prompt[..(column + 1) * size].to_vec())).is_some()
                })
            })
        };
        let num_whole = (0..=num_known).rev().find(is_usable).unwrap_or(0);
        let start = num_whole * size;
        let wanted = &prompt[start..limit.min(start + size)];
        let Some(first) = wanted.first() else { return (num_whole, None) };
        let child = self.recent.get(&(tenant, prompt[..start].to_vec(), *first));
        let child = child.filter(|child| {
            (0..self.config.groups.len())
                .all(|g| self.pool.holder(&(tenant, g, (*child).clone())).is_some())
        });
        let partial = child.map(|child| {
            let equal = child[start..].iter().zip(wanted).take_while(|(a, b)| a == b).count();
            (child.clone(), equal)
        });
        (num_whole, partial)
    }

    /// A prefix is known while a block holds it, or something longer, or a row has committed it.
    pub(super) fn note_entries(&mut self) {
        let size = self.size();
        let mut entries = BTreeSet::new();
        let mut add = |tenant: u32, tokens: &[TokenId]| {
            (1..=tokens.len() / size).for_each(|n| {
                entries.insert((tenant, tokens[..n * size].to_vec()));
            });
        };
        self.pool.content.iter().flatten().for_each(|(tenant, _, tokens)| add(*tenant, tokens));
        for row in self.rows.iter().flatten() {
            add(row.tenant, &row.tokens[..row.num_committed * size]);
        }
        let place = |(tenant, tokens): &(u32, Vec<TokenId>)| {
            let parent = tokens.len() - size;
            (*tenant, tokens[..parent].to_vec(), tokens[parent])
        };
        for gone in self.entries.difference(&entries) {
            if self.recent.get(&place(gone)) == Some(&gone.1) {
                self.recent.remove(&place(gone));
            }
        }
        for new in entries.difference(&self.entries) {
            self.recent.insert(place(new), new.1.clone());
        }
        self.entries = entries;
    }
}
