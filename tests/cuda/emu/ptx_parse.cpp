/* ptx_parse.cpp -- nvcc's PTX text into PtxKernels.
 *
 * nvcc writes a directive a line and ends each statement with ';', so the file is read by lines outside of bodies and by
 * characters inside. Names of registers get numbers as they appear; a scope of inline PTX ({ .reg .b32 t; ... }) has
 * names of its own. .loc lines tell the place in the .cu file. */
#include "emu.h"
#include "ptx.h"
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <sstream>

typedef std::string S;
typedef std::vector<S> Strings;

const char *const ptx_special_names[] = {"%tid.x",    "%tid.y",    "%tid.z",    "%ctaid.x",     "%ctaid.y",     "%ctaid.z",
                                         "%ntid.x",   "%ntid.y",   "%ntid.z",   "%nctaid.x",    "%nctaid.y",    "%nctaid.z",
                                         "%laneid",   "%warpid",   "%lanemask_eq", "%lanemask_lt", "%lanemask_le",
                                         "%lanemask_gt", "%lanemask_ge", nullptr};

static S strip(const S &s) {
    size_t a = s.find_first_not_of(" \t\r\n"), b = s.find_last_not_of(" \t\r\n");
    return a == S::npos ? "" : s.substr(a, b - a + 1);
}

static Strings split(const S &s, char at) {
    Strings out;
    S now;
    int depth = 0;
    for (char c : s) {
        depth += (c == '{' || c == '[' || c == '(') - (c == '}' || c == ']' || c == ')');
        if (c == at && !depth) {
            out.push_back(strip(now));
            now.clear();
        } else {
            now += c;
        }
    }
    if (!strip(now).empty())
        out.push_back(strip(now));
    return out;
}

struct Parser {
    const char *path;
    std::map<S, PtxKernel> *kernels;
    PtxKernel *k;
    enum { MODULE, PARAMS, HEAD, BODY } where;
    int line, statement_line;
    S statement;
    std::map<S, PtxSymbol> shared;                         /* of the module */
    std::map<S, uint64_t> constants;                       /* addresses */
    std::map<int, S> files;
    std::map<S, int> regs, labels;
    std::map<S, Strings> tables;                           /* .branchtargets */
    std::vector<std::map<S, S>> scopes;
    std::vector<std::pair<size_t, S>> jumps, jump_tables;  /* instruction, label */
    S last_label;
    int names, loc_file, loc_line;

    [[noreturn]] void fail(const S &why) { emu_fail("ptx", "%s:%d: %s", path, line, why.c_str()); }

    /* ---- registers ---- */

    int reg_new(uint64_t value) {
        k->init.push_back(value);
        return (int)k->init.size() - 1;
    }

    int reg_named(const S &name, uint64_t value) {
        auto it = regs.find(name);
        if (it == regs.end())
            it = regs.emplace(name, reg_new(value)).first;
        return it->second;
    }

    int special(const S &name) {
        for (int i = 0; ptx_special_names[i]; i++)
            if (name == ptx_special_names[i]) {
                bool known = regs.count(name);
                int r = reg_named(name, 0);
                if (!known)
                    k->specials.push_back({r, i});
                return r;
            }
        return -1;
    }

    int symbol(const S &name) {
        for (auto *table : {&k->shared, &k->local}) {
            auto it = table->find(name);
            if (it == table->end())
                continue;
            if (it->second.reg < 0)
                it->second.reg = reg_new(0);
            return it->second.reg;
        }
        if (constants.count(name))
            return reg_named(name, constants[name]);
        if (regs.count(name))
            return regs[name];                             /* a parameter: its offset */
        fail("the name " + name + " is not known");
    }

    int operand(S s) {
        for (auto scope = scopes.rbegin(); scope != scopes.rend(); ++scope)
            if (scope->count(s))
                return reg_named((*scope)[s], 0xdeadbeefdeadbeefull);
        if (s[0] == '%') {
            int r = special(s);
            return r >= 0 ? r : reg_named(s, 0xdeadbeefdeadbeefull);
        }
        if (s == "WARP_SZ")
            return reg_named(s, 32);
        if (s[0] == '0' && s.size() > 2 && strchr("fFdD", s[1]))
            return reg_named(s, strtoull(s.c_str() + 2, nullptr, 16));
        if (isdigit(s[0]))
            return reg_named(s, strtoull(s.c_str(), nullptr, 0));
        if (s[0] == '-')
            return reg_named(s, (uint64_t)strtoll(s.c_str(), nullptr, 0));
        return symbol(s);
    }

    /* ---- instructions ---- */

    void address(PtxIns *i, const S &s, int which) {
        S in = strip(s.substr(1, s.size() - 2));
        size_t plus = in.find('+');
        i->base[which] = operand(strip(in.substr(0, plus)));
        i->offset[which] = plus == S::npos ? 0 : strtoll(in.c_str() + plus + 1, nullptr, 0);
    }

    void take(PtxIns *i, bool dst, const S &s) {
        int *count = dst ? &i->dst_count : &i->src_count;
        if (*count == (dst ? PTX_DST_MAX : PTX_SRC_MAX))
            fail("too many operands: " + i->text);
        int r = s == "_" ? reg_new(0) : operand(s);
        (dst ? i->dst : i->src)[(*count)++] = r;
    }

    void operands(PtxIns *i, const S &text) {
        bool store = i->code == PTX_ST || i->code == PTX_RED || i->code == PTX_CP_ASYNC;
        bool no_result = store || i->code == PTX_BAR || i->code == PTX_BAR_WARP || i->code == PTX_CP_WAIT;
        int n = 0, addresses = 0;
        for (S s : split(text, ',')) {
            bool dst = n++ == 0 && !no_result;
            if (s[0] == '[') {
                address(i, s, addresses++);
            } else if (s[0] == '{') {
                for (const S &each : split(s.substr(1, s.size() - 2), ','))
                    take(i, dst, each);
            } else if (dst && s.find('|') != S::npos) {
                take(i, true, strip(s.substr(0, s.find('|'))));
                take(i, true, strip(s.substr(s.find('|') + 1)));
            } else if (s[0] == '!') {
                i->negated_source = true;
                take(i, dst, strip(s.substr(1)));
            } else {
                take(i, dst, s);
            }
        }
    }

    const char *site() {
        S base = path, cu = files.count(loc_file) ? files[loc_file] : "";
        base = base.substr(base.rfind('/') + 1);
        cu = cu.substr(cu.rfind('/') + 1);
        return strdup((cu.empty() ? base : cu + ":" + std::to_string(loc_line) + ", " + base).c_str());
    }

    void instruction(S t) {
        PtxIns i = {};
        i.text = t;
        i.line = statement_line;
        i.site = site();
        i.predicate = -1;
        if (t[0] == '@') {
            size_t space = t.find_first_of(" \t");
            i.predicate_not = t[1] == '!';
            i.predicate = operand(t.substr(i.predicate_not ? 2 : 1, space - (i.predicate_not ? 2 : 1)));
            t = strip(t.substr(space));
        }
        size_t space = t.find_first_of(" \t");
        ptx_decode(&i, t.substr(0, space));
        S rest = space == S::npos ? "" : strip(t.substr(space));
        if (i.code == PTX_BRA) {
            jumps.push_back({k->code.size(), rest});
        } else if (i.code == PTX_BRX) {
            Strings two = split(rest, ',');
            take(&i, false, two[0]);
            jump_tables.push_back({k->code.size(), two[1]});
        } else {
            operands(&i, rest);
        }
        k->code.push_back(i);
    }

    /* ---- variables ---- */

    /* ".align 4 .b8 name[128]" -> name, bytes, alignment */
    S variable(const S &t, PtxSymbol *v) {
        std::istringstream words(t);
        S w, name;
        *v = PtxSymbol{0, 4, false, -1};
        int each = 1;
        while (words >> w) {
            if (w == ".align")
                words >> v->align;
            else if (w == ".extern")
                v->dynamic = true;
            else if (w[0] == '.' && ptx_type(w.substr(1)).kind)
                each = ptx_type(w.substr(1)).bytes;
            else if (w[0] != '.' && name.empty())
                name = w;
        }
        size_t bracket = name.find('[');
        size_t count = bracket == S::npos ? 1 : strtoul(name.c_str() + bracket + 1, nullptr, 10);
        v->bytes = v->dynamic ? 0 : count * each;
        return name.substr(0, bracket);
    }

    /* A table of numbers. It lies in this library's own memory, which a kernel may read. */
    void constant(const S &t) {
        static char pool[256 << 10];
        static size_t used;
        PtxSymbol v;
        size_t eq = t.find('=');
        S name = variable(t.substr(0, eq), &v);
        used = (used + v.align - 1) / v.align * v.align;
        if (used + v.bytes > sizeof pool)
            fail("constant tables larger than 256 KiB");
        constants[name] = (uint64_t)(pool + used);
        char *to = pool + used;
        used += v.bytes;
        if (eq == S::npos)
            return;
        size_t open = t.find('{', eq), n = 0, each = 1;
        for (size_t at = 0; (at = t.find(" .", at)) != S::npos && at < eq; at++)
            if (PtxType type = ptx_type(t.substr(at + 2, t.find(' ', at + 2) - at - 2)); type.kind)
                each = type.bytes;
        S list = open == S::npos ? t.substr(eq + 1) : t.substr(open + 1, t.find('}', open) - open - 1);
        for (const S &x : split(list, ',')) {
            if (!isdigit(x[0]) && x[0] != '-')
                fail("a table with " + x);
            bool bits = x.size() > 2 && x[0] == '0' && strchr("fFdD", x[1]);
            uint64_t value = bits ? strtoull(x.c_str() + 2, nullptr, 16) : x[0] == '-' ? (uint64_t)strtoll(x.c_str(), 0, 0)
                                                                                     : strtoull(x.c_str(), nullptr, 0);
            memcpy(to + each * n++, &value, each);
        }
    }

    /* ---- bodies ---- */

    void directive(const S &t) {
        PtxSymbol v;
        if (t.find(".reg") == 0 && !scopes.empty()) {
            std::istringstream words(t);
            S reg, type, rest;
            words >> reg >> type;
            getline(words, rest);
            for (const S &n : split(rest, ','))
                scopes.back()[n] = n + "@" + std::to_string(++names);
        } else if (t.find(".shared") == 0) {
            S name = variable(t, &v);
            k->shared[name] = v;
        } else if (t.find(".local") == 0) {
            S name = variable(t, &v);
            v.align = k->local_bytes;                      /* where it lies */
            k->local_bytes += (v.bytes + 15) & ~(size_t)15;
            k->local[name] = v;
        } else if (t.find(".branchtargets") == 0) {
            tables[last_label] = split(t.substr(14), ',');
        }
    }

    int label_at(const S &name) {
        auto it = labels.find(name);
        if (it == labels.end())
            fail("no label " + name);
        return it->second;
    }

    void body_end() {
        for (auto &j : jumps)
            k->code[j.first].target = label_at(j.second);
        for (auto &j : jump_tables)
            for (const S &l : tables[j.second])
                k->code[j.first].targets.push_back(label_at(l));
        where = MODULE;
    }

    void body_char(char c) {
        S t = strip(statement);
        if ((c == '{' || c == '}') && t.empty()) {
            statement.clear();
            if (c == '{')
                scopes.push_back({});
            else if (scopes.empty())
                body_end();
            else
                scopes.pop_back();
        } else if (c == ':' && !t.empty() && t.find_first_of(" \t.") == S::npos && t[0] != '@') {
            labels[last_label = t] = (int)k->code.size();
            statement.clear();
        } else if (c == ';') {
            statement.clear();
            if (!t.empty())
                t[0] == '.' ? directive(t) : instruction(t);
        } else {
            if (t.empty())
                statement_line = line;
            statement += c;
        }
    }

    /* ---- module ---- */

    void kernel_begin(const S &l) {
        S name = strip(l.substr(l.find(".entry ") + 7));
        bool has_params = name.find('(') != S::npos && name.find(')') == S::npos;
        name = name.substr(0, name.find('('));
        if (kernels->count(name))
            emu_fail("ptx", "the kernel %s is in %s and in %s", name.c_str(), (*kernels)[name].path.c_str(), path);
        k = &(*kernels)[name];
        *k = PtxKernel{};
        k->name = name;
        k->path = path;
        k->shared = shared;
        regs.clear();
        labels.clear();
        tables.clear();
        jumps.clear();
        jump_tables.clear();
        where = has_params ? PARAMS : HEAD;
    }

    /* ".param .u64 name," or ".param .align 8 .b8 name[48]" */
    void param(const S &l) {
        if (l[0] == ')') {
            where = HEAD;
            return;
        }
        PtxSymbol v;
        S name = variable(l.back() == ',' ? l.substr(0, l.size() - 1) : l, &v);
        size_t align = l.find(".align") == S::npos ? v.bytes : v.align;
        int at = (int)((k->params_bytes + align - 1) / align * align);
        k->params.push_back({at, (int)v.bytes});
        k->params_bytes = at + (int)v.bytes;
        reg_named(name, (uint64_t)at);
    }

    void head(const S &l) {
        int x = 1, y = 1, z = 1;
        if ((l.find(".maxntid") == 0 || l.find(".reqntid") == 0) && sscanf(l.c_str() + 8, "%d , %d , %d", &x, &y, &z) > 0)
            k->threads_max = x * y * z;
        if (l == "{")
            where = BODY;
    }

    void module_line(const S &l) {
        PtxSymbol v;
        if (l.find(".entry ") != S::npos)
            kernel_begin(l);
        else if (l.find(".func") != S::npos && l.find(".section") == S::npos)
            fail("a .func: device functions have to be inlined (DEVICE): " + l);
        else if (l.find(".shared") != S::npos && l.back() == ';') {
            S name = variable(l.substr(0, l.size() - 1), &v);
            shared[name] = v;
        } else if ((l.find(".global ") != S::npos || l.find(".const ") != S::npos) && l.back() == ';')
            constant(l.substr(0, l.size() - 1));
    }

    void one_line(S l) {
        size_t comment = l.find("//");
        if (comment != S::npos)
            l.resize(comment);
        S t = strip(l);
        int file = 0, at = 0;
        char name[1024];
        if (sscanf(t.c_str(), ".file %d \"%1023[^\"]", &file, name) == 2)
            files[file] = name;
        else if (sscanf(t.c_str(), ".loc %d %d", &file, &at) == 2) {
            size_t caller = t.find("inlined_at ");         /* of NVIDIA's own headers the caller says more */
            if (caller != S::npos && files[file].find("/include/") != S::npos)
                sscanf(t.c_str() + caller, "inlined_at %d %d", &file, &at);
            loc_file = file;
            loc_line = at;
        } else if (where == BODY)
            for (char c : l + " ")
                where == BODY ? body_char(c) : (void)0;
        else if (!t.empty())
            where == PARAMS ? param(t) : where == HEAD ? head(t) : module_line(t);
    }
};

/* .file lines stand at the end, so they are read first. */
void ptx_parse_file(const char *path, std::map<S, PtxKernel> *kernels) {
    std::ifstream in(path);
    if (!in)
        emu_fail("ptx", "cannot read %s", path);
    Parser p = {};
    p.path = path;
    p.kernels = kernels;
    Strings lines;
    for (S l; getline(in, l);)
        lines.push_back(l);
    for (const S &l : lines)
        if (l.find("\t.file\t") == 0 || l.find(".file") == 0)
            p.one_line(l);
    for (const S &l : lines) {
        p.line++;
        p.one_line(l);
    }
}
