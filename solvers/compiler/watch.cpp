// Whether Python objects still hold what they held: compares addresses, runs no Python code but member descriptors.
#include <stddef.h>
#include <stdint.h>

// Functions of Python's C interface, found by the caller; "borrowed" results are not released.
struct Interface {
    int (*dict_next)(void*, ptrdiff_t*, void**, void**);  // borrowed
    ptrdiff_t (*dict_size)(void*);
    ptrdiff_t (*list_size)(void*);
    void* (*list_item)(void*, ptrdiff_t);  // borrowed
    void* (*cell_get)(void*);
    void* (*code_of)(void*);               // borrowed, as the next two
    void* (*defaults_of)(void*);
    void* (*keyword_defaults_of)(void*);
    void* (*type_of)(void*);
    void* (*dict_of)(void*, void*);
    void* (*attribute_of)(void*, void*);
    void (*release)(void*);
    void (*clear_error)();
};

enum { DICT, LIST, CELL, FUNCTION, OWN_DICT, TYPE, ATTRIBUTE };

// A new reference to the expected object, or to none where none is expected.
static bool is_expected(const Interface& py, void* found, intptr_t expected) {
    if (found == nullptr) {
        py.clear_error();
        return expected == 0;
    }
    py.release(found);  // the caller holds what is expected, so it lives on
    return (intptr_t)found == expected;
}

// records: for every object its kind, its address, a count n and n addresses of what it held.
extern "C" int unchanged(const Interface* interface, const intptr_t* at, int64_t words) {
    const Interface& py = *interface;
    for (const intptr_t* end = at + words; at < end; at += 3 + at[2]) {
        void* object = (void*)at[1];
        const intptr_t n = at[2], *held = at + 3;
        switch (at[0]) {
            case DICT: {
                if (py.dict_size(object) * 2 != n) return 0;
                ptrdiff_t place = 0;
                void *key, *value;
                for (intptr_t i = 0; i < n; i += 2)
                    if (!py.dict_next(object, &place, &key, &value) || (intptr_t)key != held[i] ||
                        (intptr_t)value != held[i + 1])
                        return 0;
                break;
            }
            case LIST:
                if (py.list_size(object) != n) return 0;
                for (intptr_t i = 0; i < n; i++)
                    if ((intptr_t)py.list_item(object, i) != held[i]) return 0;
                break;
            case CELL:
                if (!is_expected(py, py.cell_get(object), held[0])) return 0;
                break;
            case FUNCTION:
                if ((intptr_t)py.code_of(object) != held[0] || (intptr_t)py.defaults_of(object) != held[1] ||
                    (intptr_t)py.keyword_defaults_of(object) != held[2])
                    return 0;
                break;
            case OWN_DICT:
                if (!is_expected(py, py.dict_of(object, nullptr), held[0])) return 0;
                break;
            case TYPE:
                if (!is_expected(py, py.type_of(object), held[0])) return 0;
                break;
            case ATTRIBUTE:
                if (!is_expected(py, py.attribute_of(object, (void*)held[0]), held[1])) return 0;
                break;
        }
    }
    return 1;
}
