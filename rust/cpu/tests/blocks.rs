//! Writes to blocks: every slot gets its own numbers, and no other element of the memory changes.

use pagedkv_cpu::{Error, View, ViewMut, copy_blocks, kv_write};
use proptest::prelude::*;

const SHAPE: [usize; 4] = [5, 2, 4, 3];
/// Blocks are followed by 4 elements of nobody, heads by 1.
const STRIDES: [usize; 4] = [30, 13, 3, 1];
const LENGTH: usize = 5 * 30;

fn offset([block, head, slot, column]: [usize; 4]) -> usize {
    block * STRIDES[0] + head * STRIDES[1] + slot * STRIDES[2] + column
}

fn storage(elements: &mut [f32]) -> ViewMut<'_, f32, 4> {
    ViewMut::new("storage", elements, SHAPE, STRIDES).unwrap()
}

proptest! {
    #[test]
    fn writing_tokens_changes_their_slots_and_nothing_else(
        slots in proptest::collection::vec(-1_i64..20, 0..12),
        num_padding in 0_usize..3,
        is_transposed: bool,
    ) {
        let num_tokens = slots.len() + num_padding;
        let (token_stride, head_stride) = if is_transposed { (3, num_tokens * 3) } else { (6, 3) };
        let tokens: Vec<f32> = (0..num_tokens * 6).map(|index| index as f32 + 0.5).collect();
        let strides = [token_stride, head_stride, 1];
        let view = View::new("tokens", &tokens, [num_tokens, 2, 3], strides).unwrap();
        let mut expected: Vec<f32> = (0..LENGTH).map(|index| -(index as f32)).collect();
        let mut elements = expected.clone();
        for (token, &slot) in slots.iter().enumerate().filter(|&(_, &slot)| slot >= 0) {
            for head in 0..2 {
                for column in 0..3 {
                    let to = offset([slot as usize / 4, head, slot as usize % 4, column]);
                    expected[to] = tokens[token * token_stride + head * head_stride + column];
                }
            }
        }
        let slot_mapping = View::contiguous("slots", &slots, [slots.len()]).unwrap();
        kv_write(view, slot_mapping, &mut storage(&mut elements)).unwrap();
        prop_assert_eq!(elements, expected);
    }

    #[test]
    fn copying_blocks_makes_them_equal_and_leaves_the_gaps_alone(
        from in 1_usize..5, to in 1_usize..5,
    ) {
        let mut expected: Vec<f32> = (0..LENGTH).map(|index| index as f32).collect();
        let mut elements = expected.clone();
        for head in 0..2 {
            for slot in 0..4 {
                for column in 0..3 {
                    let [source, target] = [from, to].map(|block| offset([block, head, slot, column]));
                    expected[target] = source as f32;
                }
            }
        }
        let pairs = [from as i32, to as i32];
        let pairs = View::contiguous("pairs", &pairs, [1, 2]).unwrap();
        copy_blocks(&mut storage(&mut elements), pairs).unwrap();
        prop_assert_eq!(elements, expected);
    }
}

#[test]
fn a_bad_slot_or_block_is_refused_before_anything_is_written() {
    let untouched = vec![7.0_f32; LENGTH];
    let mut elements = untouched.clone();
    let tokens = [1.0_f32; 12];
    let tokens = View::contiguous("tokens", &tokens, [2, 2, 3]).unwrap();
    for slot in [20, -2, i64::MAX, i64::MIN] {
        let slots = [3, slot];
        let slot_mapping = View::contiguous("slots", &slots, [2]).unwrap();
        let error = kv_write(tokens, slot_mapping, &mut storage(&mut elements)).unwrap_err();
        assert_eq!(error, Error::Slot { index: 1, slot, num_slots: 20 });
    }
    for block in [0, 5, -1, i32::MIN] {
        let pairs = [1, 2, 1, block];
        let pairs = View::contiguous("pairs", &pairs, [2, 2]).unwrap();
        let error = copy_blocks(&mut storage(&mut elements), pairs).unwrap_err();
        let (argument, index, first, num_blocks) = ("pairs", 1, 1, 5);
        assert_eq!(error, Error::Block { argument, index, block, first, num_blocks });
    }
    assert_eq!(elements, untouched);
}

#[test]
fn more_slots_than_tokens_and_foreign_shapes_are_refused() {
    let mut elements = vec![7.0_f32; LENGTH];
    let numbers = [1.0_f32; 12];
    let slots = [1_i64, 2];
    let slot_mapping = View::contiguous("slots", &slots, [2]).unwrap();
    for shape in [[1, 2, 3], [2, 1, 3], [2, 2, 2]] {
        let tokens = View::contiguous("tokens", &numbers, shape).unwrap();
        assert!(kv_write(tokens, slot_mapping, &mut storage(&mut elements)).is_err());
    }
}

#[test]
fn a_view_cannot_leave_its_memory_nor_a_writeable_one_overlap_itself() {
    let mut elements = vec![0.0_f32; 24];
    assert!(View::new("view", &elements, [2, 3, 4], [12, 4, 1]).is_ok());
    assert!(matches!(
        View::new("view", &elements, [2, 3, 4], [13, 4, 1]).err(),
        Some(Error::Span { needed: 25, available: 24, .. })
    ));
    assert!(View::new("view", &elements, [2, 3, 4], [usize::MAX, 4, 1]).is_err());
    assert!(matches!(
        View::new("view", &elements, [2, 3, 4], [1, 2, 6]).err(),
        Some(Error::InnerStride { got: 6, .. })
    ));
    assert!(View::new("view", &elements, [9, 3, 4], [0, 4, 1]).is_ok());
    assert!(matches!(
        ViewMut::new("view", &mut elements, [9, 3, 4], [0, 4, 1]).err(),
        Some(Error::Overlap { .. })
    ));
    assert!(ViewMut::new("view", &mut elements, [2, 3, 4], [3, 8, 1]).is_err());
    assert!(ViewMut::new("view", &mut elements, [0, 3, 4], [0, 0, 1]).is_ok());
}

#[test]
#[should_panic(expected = "index outside the view")]
fn an_index_outside_a_view_is_a_panic_not_a_read() {
    let elements = [0.0_f32; 24];
    View::contiguous("view", &elements, [2, 3, 4]).unwrap().run([1, 3, 0]);
}
