/* arena.c - see arena.h. */
#include "arena.h"

static const size_t BLOCK = (size_t)32 << 20;

struct la_arena_block {
    struct la_arena_block *next;
    uint8_t *base;
    size_t bytes, used;
};

struct la_arena_piece {
    struct la_arena_piece *next;
    void *p;
    size_t bytes;
};

static size_t piece_bytes(size_t bytes)
{
    return la_round_up(bytes > 0 ? bytes : 1, la_page_bytes());
}

static void *take_spare(la_arena *a, size_t bytes)
{
    for (struct la_arena_piece **at = &a->spare; *at != NULL; at = &(*at)->next) {
        if ((*at)->bytes == bytes) {
            struct la_arena_piece *found = *at;
            void *p = found->p;
            *at = found->next;
            la_free(found);
            return p;
        }
    }
    return NULL;
}

static struct la_arena_block *add_block(la_arena *a, size_t bytes)
{
    struct la_arena_block *b = la_alloc(1, sizeof *b);
    uint8_t *base = b != NULL ? a->from.map(a->from.owner, bytes) : NULL;
    if (base == NULL) {
        la_free(b);
        return NULL;
    }
    *b = (struct la_arena_block){a->blocks, base, bytes, 0};
    a->blocks = b;
    return b;
}

void *la_arena_take(la_arena *a, size_t bytes)
{
    size_t n = piece_bytes(bytes);
    if (n < bytes) {
        return NULL;
    }
    void *spare = take_spare(a, n);
    if (spare != NULL) {
        return spare;
    }
    struct la_arena_block *b = a->blocks;
    while (b != NULL && b->bytes - b->used < n) {
        b = b->next;
    }
    if (b == NULL) {
        b = add_block(a, n > BLOCK ? n : BLOCK);
    }
    if (b == NULL) {
        return NULL;
    }
    b->used += n;
    return b->base + b->used - n;
}

void la_arena_give(la_arena *a, void *p, size_t bytes)
{
    struct la_arena_piece *piece = p != NULL ? la_alloc(1, sizeof *piece) : NULL;
    if (piece != NULL) { /* without a note of it the piece waits for the end of the arena */
        *piece = (struct la_arena_piece){a->spare, p, piece_bytes(bytes)};
        a->spare = piece;
    }
}

void la_arena_clear(la_arena *a)
{
    while (a->blocks != NULL) {
        struct la_arena_block *b = a->blocks;
        a->blocks = b->next;
        a->from.unmap(a->from.owner, b->base, b->bytes);
        la_free(b);
    }
    while (a->spare != NULL) {
        struct la_arena_piece *piece = a->spare;
        a->spare = piece->next;
        la_free(piece);
    }
}
