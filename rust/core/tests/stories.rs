//! What the scheduler does, told step by step. Read these to see how it works; each is checked.
//!
//! Tokens are letters, a block holds four of them, the model continues the alphabet (see
//! `support/story.rs`). `UPDATE_EXPECT=1 cargo test --test stories` rewrites them.
#![expect(clippy::too_many_lines, reason = "a story is as long as what it tells")]

use expect_test::{Expect, expect};
use pagedkv_core::GroupKind;

#[path = "support/story.rs"]
mod support;

use support::{Story, small};

fn tell(story: Story, expected: &Expect) {
    expected.assert_eq(&story.told());
}

#[test]
fn a_long_prompt_is_computed_in_chunks_beside_a_decode() {
    let mut story = Story::new(small());
    story.add('A', "abc", 1, 4);
    story.step();
    story.add('B', "mnopqrstuvwx", 1, 1);
    story.finish();
    tell(
        story,
        &expect![[r#"
        A arrives: abc, n = 1, max_tokens = 4
        batch 1
          A0 runs 0..3   abc      in [1]
          A0 gets d
        B arrives: mnopqrstuvwx, n = 1, max_tokens = 1
        batch 2
          A0 runs 3..4   d        in [1]
          B0 runs 0..7   mnopqrs  in [2 3]
          A0 gets e
        batch 3
          A0 runs 4..5   e        in [1 4]
          B0 runs 7..12  tuvwx    in [2 3 5]
          A0 gets f
          B0 gets y
          B ends with ["y"], 0 tokens cached, 0 preemptions
        batch 4
          A0 runs 5..6   f        in [1 4]
          A0 gets g
          A ends with ["defg"], 0 tokens cached, 0 preemptions
        pool: 0 used, 16 free, 4 cached
    "#]],
    );
}

#[test]
fn a_prompt_that_was_seen_is_shared_block_by_block() {
    let mut story = Story::new(small());
    story.add('A', "abcdefghij", 1, 2);
    story.finish_silently();
    story.add('B', "abcdefghij", 1, 2);
    story.finish();
    tell(
        story,
        &expect![[r#"
        A arrives: abcdefghij, n = 1, max_tokens = 2
        ...
        pool: 0 used, 16 free, 2 cached
        B arrives: abcdefghij, n = 1, max_tokens = 2
        batch 4
          B0 runs 8..10  ij       in [1 2 3]
          B0 gets k
        batch 5
          B0 runs 10..11 k        in [1 2 3]
          B0 gets l
          B ends with ["kl"], 8 tokens cached, 0 preemptions
        pool: 0 used, 16 free, 2 cached
    "#]],
    );
}

#[test]
fn a_block_that_differs_late_is_copied_as_far_as_it_is_alike() {
    let mut story = Story::new(small());
    story.add('A', "abcdefgh", 1, 2);
    story.finish_silently();
    story.add('B', "abcdefzz", 1, 1);
    story.finish();
    tell(
        story,
        &expect![[r#"
        A arrives: abcdefgh, n = 1, max_tokens = 2
        ...
        pool: 0 used, 16 free, 2 cached
        B arrives: abcdefzz, n = 1, max_tokens = 1
        batch 3
          copy block 2 to 3
          B0 runs 6..8   zz       in [1 3]
          B0 gets a
          B ends with ["a"], 6 tokens cached, 0 preemptions
        pool: 0 used, 16 free, 3 cached
    "#]],
    );
}

#[test]
fn three_samples_share_the_prompt_and_copy_on_the_first_write() {
    let mut story = Story::new(small());
    story.add('A', "abcdef", 3, 3);
    story.finish();
    tell(
        story,
        &expect![[r#"
        A arrives: abcdef, n = 3, max_tokens = 3
        batch 1
          A0 runs 0..6   abcdef   in [1 2]
          A1 forks from A0
          A2 forks from A0
          A0 gets g
          A1 gets g
          A2 gets h
        batch 2
          copy block 2 to 3
          copy block 2 to 4
          A0 runs 6..7   g        in [1 3]
          A1 runs 6..7   g        in [1 4]
          A2 runs 6..7   h        in [1 2]
          A0 gets h
          A1 gets i
          A2 gets k
        batch 3
          A0 runs 7..8   h        in [1 3]
          A1 runs 7..8   i        in [1 4]
          A2 runs 7..8   k        in [1 2]
          A0 gets i
          A1 gets k
          A2 gets o
          A ends with ["ghi", "gik", "hko"], 0 tokens cached, 0 preemptions
        pool: 0 used, 16 free, 4 cached
    "#]],
    );
}

#[test]
fn the_latest_arrival_gives_up_its_blocks_and_comes_back() {
    let mut config = small();
    config.cache.num_blocks = 6;
    config.max_num_batched_tokens = 13;
    let mut story = Story::new(config);
    story.add('A', "abcdefg", 1, 7);
    story.add('B', "mnopqr", 1, 4);
    story.finish();
    tell(
        story,
        &expect![[r#"
            A arrives: abcdefg, n = 1, max_tokens = 7
            B arrives: mnopqr, n = 1, max_tokens = 4
            batch 1
              A0 runs 0..7   abcdefg  in [1 2]
              B0 runs 0..6   mnopqr   in [3 4]
              A0 gets h
              B0 gets s
            batch 2
              A0 runs 7..8   h        in [1 2]
              B0 runs 6..7   s        in [3 4]
              A0 gets i
              B0 gets t
            batch 3
              A0 runs 8..9   i        in [1 2 5]
              B0 runs 7..8   t        in [3 4]
              A0 gets j
              B0 gets u
            batch 4
              A0 runs 9..10  j        in [1 2 5]
              A0 gets k
            batch 5
              A0 runs 10..11 k        in [1 2 5]
              A0 gets l
            batch 6
              A0 runs 11..12 l        in [1 2 5]
              A0 gets m
            batch 7
              A0 runs 12..13 m        in [1 2 5 4]
              A0 gets n
              A ends with ["hijklmn"], 0 tokens cached, 0 preemptions
            batch 8
              B0 runs 4..9   qrstu    in [3 4 5]
              B0 gets v
              B ends with ["stuv"], 0 tokens cached, 1 preemptions
            pool: 0 used, 5 free, 4 cached
        "#]],
    );
}

#[test]
fn siblings_come_back_along_their_common_past() {
    let mut config = small();
    config.cache.num_blocks = 11;
    config.cache.enable_prefix_caching = false;
    let mut story = Story::new(config);
    story.add('A', "abcdef", 1, 8);
    story.add('B', "mnopqr", 3, 7);
    story.finish();
    tell(
        story,
        &expect![[r#"
            A arrives: abcdef, n = 1, max_tokens = 8
            B arrives: mnopqr, n = 3, max_tokens = 7
            batch 1
              A0 runs 0..6   abcdef   in [1 2]
              B0 runs 0..2   mn       in [3]
              A0 gets g
            batch 2
              A0 runs 6..7   g        in [1 2]
              B0 runs 2..6   opqr     in [3 4]
              B1 forks from B0
              B2 forks from B0
              A0 gets h
              B0 gets s
              B1 gets s
              B2 gets t
            batch 3
              copy block 4 to 5
              copy block 4 to 6
              A0 runs 7..8   h        in [1 2]
              B0 runs 6..7   s        in [3 5]
              B1 runs 6..7   s        in [3 6]
              B2 runs 6..7   t        in [3 4]
              A0 gets i
              B0 gets t
              B1 gets u
              B2 gets w
            batch 4
              A0 runs 8..9   i        in [1 2 7]
              B0 runs 7..8   t        in [3 5]
              B1 runs 7..8   u        in [3 6]
              B2 runs 7..8   w        in [3 4]
              A0 gets j
              B0 gets u
              B1 gets w
              B2 gets a
            batch 5
              A0 runs 9..10  j        in [1 2 7]
              B0 runs 8..9   u        in [3 5 8]
              B1 runs 8..9   w        in [3 6 9]
              B2 runs 8..9   a        in [3 4 10]
              A0 gets k
              B0 gets v
              B1 gets z
              B2 gets f
            batch 6
              A0 runs 10..11 k        in [1 2 7]
              B0 runs 9..10  v        in [3 5 8]
              B1 runs 9..10  z        in [3 6 9]
              B2 runs 9..10  f        in [3 4 10]
              A0 gets l
              B0 gets w
              B1 gets c
              B2 gets l
            batch 7
              A0 runs 11..12 l        in [1 2 7]
              B0 runs 10..11 w        in [3 5 8]
              B1 runs 10..11 c        in [3 6 9]
              B2 runs 10..11 l        in [3 4 10]
              A0 gets m
              B0 gets x
              B1 gets g
              B2 gets s
            batch 8
              A0 runs 12..13 m        in [1 2 7 3]
              A0 gets n
              A ends with ["ghijklmn"], 0 tokens cached, 0 preemptions
            batch 9
              B0 runs 0..6   mnopqr   in [1 2]
              B2 forks from B0
            batch 10
              copy block 2 to 7
              B0 runs 6..7   s        in [1 7]
              B2 runs 6..12  twafls   in [1 2 3]
              B1 forks from B0
              B2 gets a
            batch 11
              copy block 7 to 2
              B0 runs 7..12  tuvwx    in [1 2 3]
              B1 runs 7..10  uwz      in [1 7 5]
              B0 gets y
            batch 12
              B1 runs 10..12 cg       in [1 7 5]
              B1 gets k
              B ends with ["stuvwxy", "suwzcgk", "twaflsa"], 0 tokens cached, 1 preemptions
            pool: 0 used, 10 free, 0 cached
        "#]],
    );
}

#[test]
fn an_abort_frees_what_the_request_held() {
    let mut story = Story::new(small());
    story.add('A', "abcdefgh", 2, 8);
    story.add('B', "mnop", 1, 2);
    story.step();
    story.step();
    story.abort('A');
    story.finish();
    tell(
        story,
        &expect![[r#"
        A arrives: abcdefgh, n = 2, max_tokens = 8
        B arrives: mnop, n = 1, max_tokens = 2
        batch 1
          A0 runs 0..8   abcdefgh in [1 2]
          A1 forks from A0
          A0 gets i
          A1 gets i
        batch 2
          A0 runs 8..9   i        in [1 2 3]
          A1 runs 8..9   i        in [1 2 4]
          B0 runs 0..4   mnop     in [5]
          A0 gets j
          A1 gets k
          B0 gets q
        A is aborted with ["ij", "ik"]
        pool: 1 used, 15 free, 3 cached
        batch 3
          B0 runs 4..5   q        in [5 3]
          B0 gets r
          B ends with ["qr"], 0 tokens cached, 0 preemptions
        pool: 0 used, 16 free, 3 cached
    "#]],
    );
}

#[test]
fn a_window_gives_back_the_blocks_that_it_left() {
    let mut config = small();
    config.cache.groups = vec![GroupKind::Full, GroupKind::Sliding(6)];
    let mut story = Story::new(config);
    story.add('A', "abcdefgh", 1, 6);
    story.finish();
    tell(
        story,
        &expect![[r#"
        A arrives: abcdefgh, n = 1, max_tokens = 6
        batch 1
          A0 runs 0..8   abcdefgh in [1 3] [2 4]
          A0 gets i
        batch 2
          A0 runs 8..9   i        in [1 3 5] [2 4 6]
          A0 gets j
        batch 3
          A0 runs 9..10  j        in [1 3 5] [- 4 6]
          A0 gets k
        batch 4
          A0 runs 10..11 k        in [1 3 5] [- 4 6]
          A0 gets l
        batch 5
          A0 runs 11..12 l        in [1 3 5] [- 4 6]
          A0 gets m
        batch 6
          A0 runs 12..13 m        in [1 3 5 7] [- 4 6 8]
          A0 gets n
          A ends with ["ijklmn"], 0 tokens cached, 0 preemptions
        pool: 0 used, 16 free, 6 cached
    "#]],
    );
}

#[test]
fn the_next_batch_is_planned_before_the_last_one_has_run() {
    let mut config = small();
    config.max_in_flight = 2;
    let mut story = Story::new(config);
    story.eos = Some('g');
    story.add('A', "abcde", 1, 8);
    story.plan();
    story.plan();
    story.update();
    story.plan();
    story.update();
    story.plan();
    story.update();
    tell(
        story,
        &expect![[r#"
        A arrives: abcde, n = 1, max_tokens = 8
        batch 1
          A0 runs 0..5   abcde    in [1 2]
          A0 gets f
        batch 2
          A0 runs 5..6   <0>      in [1 2]
          A0 gets g
        batch 3
          A0 runs 6..7   <0>      in [1 2]
          A0 gets h
          A ends with ["fg"], 0 tokens cached, 0 preemptions
        nothing to run
          sample 0 of batch 3 is too late
    "#]],
    );
}
