// Test-only PTX interpreter: runs what nvcc generated (nvcc -ptx), thread by thread, inside the emulator's fibres.
// EMU_PTX=file.ptx makes every launch of a kernel found there run its PTX instead of the host-compiled body.
#include "emu.h"
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <map>
#include <memory>
#include <sstream>
#include <string>
#include <cuda_fp16.h>
#include <cuda_bf16.h>
extern "C" { void emu_bar(int, int, int *, const char *, int); unsigned long long emu_warp(int, unsigned, unsigned long long, int, int, const char *, int); void *emu_smem_dyn(size_t); void *emu_smem_static(const void *, size_t, size_t, const char *); extern uint3 threadIdx, blockIdx; extern dim3 blockDim, gridDim; void emu_race_access(uintptr_t, size_t, bool, bool, const void *) __attribute__((weak)); }
static constexpr uint32_t H(const char *s) { uint32_t h = 2166136261u; while (*s) h = (h ^ (unsigned char)*s++) * 16777619u; return h; }
typedef std::string S; typedef std::vector<S> VS;
enum OK { REG, IMM, SPEC, SYM, MEM, VEC, LAB };
struct Opd { OK k = IMM; int r = -1; uint64_t imm = 0; S sym; std::vector<Opd> v; };
struct Ins { S op; VS m; S text; int pred = -1; bool neg = false; std::vector<Opd> o; int line = 0; int target = -1; uint32_t oph = 0, tyh = 0; int w = 0; char t0 = 0; std::vector<uint32_t> mh; };
struct Shv { S name; size_t n, al; bool dyn; };
struct Fn { S name, path; std::map<S, int> par; std::vector<std::pair<int, int>> plist; std::vector<Ins> code; std::map<S, int> regs; std::map<S, int> labels; std::map<S, Shv> sh, loc; int psize = 0; size_t lsize = 0; };
static std::map<S, Fn> g_fns; static bool g_loaded; static S g_path;
static S strip(const S &s) { size_t a = s.find_first_not_of(" \t\n\r"), b = s.find_last_not_of(" \t\n\r"); return a == S::npos ? "" : s.substr(a, b - a + 1); }
static VS split(const S &s, char c) { VS r; int d = 0; S cur; for (char ch : s) { if (ch == '{' || ch == '[') d++; if (ch == '}' || ch == ']') d--; if (ch == c && !d) { r.push_back(strip(cur)); cur.clear(); } else cur += ch; } if (!strip(cur).empty()) r.push_back(strip(cur)); return r; }
static int tw(const S &t) { if (t == "pred") return 1; if (t == "f16x2" || t == "bf16x2") return 4; int w = atoi(t.c_str() + t.find_first_of("0123456789")); return t[0] == 'b' && t[1] == 'f' ? 2 : w / 8; }
static bool isty(const S &t) { static const char *T[] = {"b8","b16","b32","b64","u8","u16","u32","u64","s8","s16","s32","s64","f16","f32","f64","f16x2","bf16","bf16x2","pred"}; for (auto x : T) if (t == x) return true; return false; }
struct Parser { Fn &f; std::vector<std::map<S, S>> scopes; int uniq = 0;
    int reg(const S &n) { auto it = f.regs.find(n); if (it != f.regs.end()) return it->second; int i = (int)f.regs.size(); f.regs[n] = i; return i; }
    Opd opd(S s) { Opd o; s = strip(s);
        if (s[0] == '{') { o.k = VEC; for (auto &x : split(s.substr(1, s.size() - 2), ',')) o.v.push_back(opd(x)); return o; }
        if (s[0] == '[') { o = Opd(); S in = strip(s.substr(1, s.size() - 2)); size_t p = in.find('+'); S b = strip(in.substr(0, p)); o = opd(b); o.sym = o.k == SYM ? b : o.sym; Opd m; m.k = MEM; m.imm = p == S::npos ? 0 : (uint64_t)strtoll(in.c_str() + p + 1, 0, 0); m.v.push_back(o); return m; }
        for (auto sc = scopes.rbegin(); sc != scopes.rend(); ++sc) { auto it = sc->find(s); if (it != sc->end()) { o.k = REG; o.r = reg(it->second); return o; } }
        if (s[0] == '%') { static const char *SP[] = {"%tid.x","%tid.y","%tid.z","%ctaid.x","%ctaid.y","%ctaid.z","%ntid.x","%ntid.y","%ntid.z","%nctaid.x","%nctaid.y","%nctaid.z","%laneid","%warpid"}; for (int i = 0; i < 14; i++) if (s == SP[i]) { o.k = SPEC; o.r = i; return o; } o.k = REG; o.r = reg(s); return o; }
        if (s[0] == '0' && (s[1] == 'f' || s[1] == 'F' || s[1] == 'd' || s[1] == 'D')) { o.imm = strtoull(s.c_str() + 2, 0, 16); return o; }
        if (isdigit(s[0]) || s[0] == '-') { o.imm = s[0] == '-' ? (uint64_t)strtoll(s.c_str(), 0, 0) : strtoull(s.c_str(), 0, 0); return o; }
        o.k = SYM; o.sym = s; return o; } };
static void load_one(const char *p) {
    g_path = p; std::ifstream in(p); if (!in) emu_fail("ptx", "cannot read %s", p); S line, all; std::vector<S> L; while (getline(in, line)) { size_t c = line.find("//"); if (c != S::npos) line.resize(c); L.push_back(line); }
    Fn *f = nullptr; int st = 0; S cur; std::unique_ptr<Parser> ps; int curline = 0; std::map<S, Shv> glob;
    auto shared = [](const S &t, std::map<S, Shv> &to) { std::istringstream is(t); S w, name; size_t al = 4; bool ext = false; while (is >> w) { if (w == ".align") is >> al; else if (w == ".extern") ext = true; else if (w[0] != '.') name = w; } size_t b = name.find('['); size_t n = ext ? 0 : strtoul(name.c_str() + b + 1, 0, 10); name = name.substr(0, b); to[name] = Shv{name, n, al, ext}; };
    for (size_t ln = 0; ln < L.size(); ln++) { S l = strip(L[ln]); if (l.compare(0, 5, ".loc\t") == 0 || l.compare(0, 5, ".loc ") == 0) continue;
        if (st == 0) { size_t e = l.find(".entry "); if (l.find(".shared") != S::npos) { shared(l.substr(0, l.find(';')), glob); continue; } if (l.find(".func") == 0) emu_fail("ptx", "line %zu: .func is not supported (inline the device function)", ln + 1); if (e == S::npos) continue; S n = strip(l.substr(e + 7)); bool more = n.back() == '('; n = n.substr(0, n.find('(')); if (g_fns.count(n)) emu_fail("ptx", "kernel %s is in %s and in %s", n.c_str(), g_fns[n].path.c_str(), p); f = &g_fns[n]; f->name = n; f->path = p; f->sh = glob; ps.reset(new Parser{*f, {}, 0}); st = more ? 1 : 2; continue; }
        if (st == 1) { if (l == ")" ) { st = 2; continue; } std::istringstream is(l); S a, t, n; is >> a >> t; if (t == ".align") emu_fail("ptx", "struct parameters"); S q; is >> n; while (is >> q) n = q; if (n.back() == ',') n.pop_back(); int w = tw(t.substr(1)); f->psize = (f->psize + w - 1) / w * w; f->par[n] = f->psize; f->plist.push_back({f->psize, w}); f->psize += w; continue; }
        if (st == 2) { if (l == "{") { st = 3; cur.clear(); } continue; }
        for (size_t i = 0; i <= l.size(); i++) { char c = i < l.size() ? l[i] : ' ';
            S t = strip(cur);
            if (c == '{' && t.empty()) { ps->scopes.push_back({}); cur.clear(); continue; }
            if (c == '}' && t.empty()) { if (ps->scopes.empty()) { st = 0; break; } ps->scopes.pop_back(); cur.clear(); continue; }
            if (c == ':' && t.size() && t.find(' ') == S::npos && t[0] != '@') { f->labels[t] = (int)f->code.size(); cur.clear(); continue; }
            if (c != ';') { if (t.empty()) { curline = (int)ln + 1; } cur += c; continue; }
            cur.clear(); if (t.empty()) continue;
            if (t[0] == '.') { if (t.find(".reg") == 0 && !ps->scopes.empty()) { std::istringstream is(t); S a, ty, rest; is >> a >> ty; getline(is, rest); for (auto &n : split(rest, ',')) ps->scopes.back()[n] = n + "@" + std::to_string(++ps->uniq); } else if (t.find(".shared") == 0) shared(t, f->sh); else if (t.find(".local") == 0) { std::map<S, Shv> m; shared(t, m); for (auto &k : m) { k.second.al = f->lsize; f->loc[k.first] = k.second; f->lsize += (k.second.n + 15) & ~(size_t)15; } } continue; }
            Ins I; I.text = t; I.line = curline; if (t[0] == '@') { size_t sp = t.find_first_of(" \t"); S pr = t.substr(1, sp - 1); if (pr[0] == '!') { I.neg = true; pr = pr.substr(1); } I.pred = ps->opd(pr).r; t = strip(t.substr(sp)); }
            size_t sp = t.find_first_of(" \t"); S full = t.substr(0, sp); VS parts = split(full, '.'); { std::istringstream is(full); S w; parts.clear(); while (getline(is, w, '.')) parts.push_back(w); } I.op = parts[0]; I.m.assign(parts.begin() + 1, parts.end()); 
            if (sp != S::npos) for (auto &o : split(t.substr(sp), ',')) { size_t b = o.find('|'); if (b != S::npos && o[0] == '%') { I.o.push_back(ps->opd(o.substr(0, b))); continue; } I.o.push_back(ps->opd(o)); }
            I.oph = H(I.op.c_str()); for (auto &x : I.m) I.mh.push_back(H(x.c_str())); if (!I.m.empty() && isty(I.m.back())) { I.tyh = I.mh.back(); I.w = tw(I.m.back()); I.t0 = I.m.back()[0]; } f->code.push_back(I); }
    }
    for (auto &k : g_fns) for (auto &I : k.second.code) if (I.op == "bra") { auto it = k.second.labels.find(I.o[0].sym); if (it == k.second.labels.end()) emu_fail("ptx", "label %s", I.o[0].sym.c_str()); I.target = it->second; }
}
static void load() { g_loaded = true; const char *p = getenv("EMU_PTX"); if (!p) return; for (auto &x : split(p, ':')) load_one(x.c_str()); }
static float u2f(uint64_t u) { uint32_t x = (uint32_t)u; float f; memcpy(&f, &x, 4); return f; } static uint64_t f2u(float f) { uint32_t x; memcpy(&x, &f, 4); return x; }
static float h2f(uint64_t u) { uint16_t x = (uint16_t)u; _Float16 h; memcpy(&h, &x, 2); return (float)h; } static uint64_t d2h(double d) { _Float16 h = (_Float16)d; uint16_t x; memcpy(&x, &h, 2); return x; }
static float b2f(uint64_t u) { return u2f((u & 0xffff) << 16); } static uint64_t d2b(double d) { __nv_bfloat16 b = __double2bfloat16(d); uint16_t x; memcpy(&x, (void *)&b, 2); return x; }
static int64_t sx(uint64_t v, int w) { return w == 8 ? (int64_t)v : w == 4 ? (int32_t)v : w == 2 ? (int16_t)v : (int8_t)v; } static uint64_t zx(uint64_t v, int w) { return w == 8 ? v : v & ((1ull << (8 * w)) - 1); }
template <class T> static T alu(uint32_t op, T a, T b) { if (op == H("add")) return a + b; if (op == H("sub")) return a - b; if (op == H("mul")) return a * b; if (op == H("max")) return std::fmax(a, b); if (op == H("min")) return std::fmin(a, b); if (op == H("div")) return a / b; emu_fail("ptx-unsupported", "float operation"); }
static const Ins *emu_ptx_at;
bool emu_ptx_site(char *b, size_t n) { if (!emu_ptx_at) return false; snprintf(b, n, "%s:%d: %s", g_path.c_str(), emu_ptx_at->line, emu_ptx_at->text.c_str()); return true; }
struct Th { Fn &f; std::vector<uint64_t> r; const char *par; uintptr_t sbase; char *local; const Ins *I;
    [[noreturn]] void bad(const char *why) { emu_fail("ptx-unsupported", "%s:%d: %s (%s)", g_path.c_str(), I->line, I->text.c_str(), why); }
    bool hash_has(uint32_t m) { for (auto x : I->mh) if (x == m) return true; return false; }
    uintptr_t shaddr(const Shv &s) { return s.dyn ? (uintptr_t)emu_smem_dyn(16) : (uintptr_t)emu_smem_static(&s, s.n, s.al, s.name.c_str()); }
    uint64_t val(const Opd &o) { switch (o.k) { case REG: return r[o.r]; case IMM: return o.imm;
        case SPEC: { const unsigned v[] = {threadIdx.x, threadIdx.y, threadIdx.z, blockIdx.x, blockIdx.y, blockIdx.z, blockDim.x, blockDim.y, blockDim.z, gridDim.x, gridDim.y, gridDim.z, threadIdx.x & 31, threadIdx.x / 32}; return v[o.r]; }
        case SYM: { auto it = f.sh.find(o.sym); if (it != f.sh.end()) return shaddr(it->second) - sbase; it = f.loc.find(o.sym); if (it != f.loc.end()) return (uint64_t)(local + it->second.al); bad("symbol"); } default: bad("operand"); } }
    uintptr_t addr(const Opd &o, bool shared) { uint64_t b = val(o.v[0]) + o.imm; return shared ? sbase + (uint32_t)b : b; }
    void touch(uintptr_t a, int n, bool wr, bool at = false) { if (a % n) emu_fail("misaligned", "%s:%d: %s: %d bytes at %p", g_path.c_str(), I->line, I->text.c_str(), n, (void *)a); if (emu_race_access) { emu_ptx_at = I; emu_race_access(a, n, wr, at, (const void *)1); } }
    uint64_t cvt1(const S &d, const S &s, uint64_t v) { double x; bool fs = s[0] == 'f' || s[0] == 'b', fd = d[0] == 'f' || d[0] == 'b'; if (s == "f32") x = u2f(v); else if (s == "f16") x = h2f(v); else if (s == "bf16") x = b2f(v); else if (s == "f64") memcpy(&x, &v, 8); else { int64_t q = s[0] == 's' ? sx(v, tw(s)) : (int64_t)zx(v, tw(s)); if (!fd) return zx((uint64_t)q, tw(d)); x = (double)q; }
        if (hash_has(H("rni"))) x = nearbyint(x); else if (hash_has(H("rzi"))) x = trunc(x); else if (hash_has(H("rmi"))) x = floor(x); else if (hash_has(H("rpi"))) x = ceil(x); if (hash_has(H("sat")) && fd) x = x > 1 ? 1 : x > 0 ? x : 0; (void)fs;
        if (d == "f32") return f2u((float)x); if (d == "f16") return d2h(x); if (d == "bf16") return d2b(x); if (d == "f64") { uint64_t u; memcpy(&u, &x, 8); return u; }
        int w = tw(d); double lo = d[0] == 's' ? -std::ldexp(1, 8 * w - 1) : 0, hi = d[0] == 's' ? std::ldexp(1, 8 * w - 1) - 1 : std::ldexp(1, 8 * w) - 1; if (std::isnan(x)) return 0; if (x < lo) x = lo; if (x > hi) x = hi; return zx(d[0] == 's' ? (uint64_t)(int64_t)x : (uint64_t)x, w); }
    void run() {
        size_t pc = 0, n = f.code.size();
        while (pc < n) { I = &f.code[pc++]; const Ins &i = *I; if (i.pred >= 0 && ((r[i.pred] != 0) == i.neg)) continue; const uint32_t op = i.oph, ty = i.tyh; const int W = i.w; const char T0 = i.t0; auto D = [&]() -> uint64_t & { return r[i.o[0].r]; }; auto A = [&](int k) { return val(i.o[k]); };
            if (op == H("ret") || op == H("exit")) return;
            if (op == H("bra")) { pc = i.target; continue; }
            if (op == H("mov")) { if (i.o[0].k == VEC) { uint64_t v = A(1); int w = W / (int)i.o[0].v.size(); for (size_t k = 0; k < i.o[0].v.size(); k++) r[i.o[0].v[k].r] = zx(v >> (8 * w * k), w); } else if (i.o[1].k == VEC) { uint64_t v = 0; int w = W / (int)i.o[1].v.size(); for (size_t k = 0; k < i.o[1].v.size(); k++) v |= zx(val(i.o[1].v[k]), w) << (8 * w * k); D() = v; } else D() = A(1); continue; }
            if (op == H("ld") || op == H("st")) { bool st = op == H("st"); const Opd &mo = i.o[st ? 0 : 1], &ro = i.o[st ? 1 : 0]; int w = W; size_t cnt = ro.k == VEC ? ro.v.size() : 1;
                if (hash_has(H("param"))) { int off = f.par.at(mo.v[0].sym) + (int)mo.imm; uint64_t v = 0; memcpy(&v, par + off, w); r[ro.r] = T0 == 's' ? (uint64_t)sx(v, w) : v; continue; }
                uintptr_t a = addr(mo, hash_has(H("shared"))); if (hash_has(H("local")) && (a < (uintptr_t)local || a + w * cnt > (uintptr_t)local + f.lsize)) emu_fail("out-of-bounds", "%s:%d: %s: local array", g_path.c_str(), I->line, I->text.c_str()); touch(a, w * (int)cnt, st);
                for (size_t k = 0; k < cnt; k++) { const Opd &q = ro.k == VEC ? ro.v[k] : ro; if (st) { uint64_t v = val(q); memcpy((void *)(a + k * w), &v, w); } else { uint64_t v = 0; memcpy(&v, (void *)(a + k * w), w); r[q.r] = T0 == 's' ? (uint64_t)sx(v, w) : v; } } continue; }
            if (op == H("cvta")) { D() = hash_has(H("to")) ? (hash_has(H("shared")) ? A(1) - sbase : A(1)) : (hash_has(H("shared")) ? A(1) + sbase : A(1)); continue; }
            if (op == H("cvt")) { const S &d = i.m[i.m.size() - 2], &s = i.m.back(); if (d == "f16x2" || d == "bf16x2") { S e = d.substr(0, d.size() - 2); D() = cvt1(e, s, A(2)) | cvt1(e, s, A(1)) << 16; } else { uint64_t v = cvt1(d, s, A(1)); D() = d[0] == 's' && tw(d) < 4 ? zx((uint64_t)sx(v, tw(d)), 4) : v; } continue; }
            if (op == H("bar") && hash_has(H("warp"))) { emu_warp(0, (unsigned)A(0), 0, 0, 32, "ptx", i.line); continue; }
            if (op == H("bar") || op == H("barrier")) { if (A(0) != 0) bad("named barrier"); emu_bar(0, 0, nullptr, "ptx", i.line); continue; }
            if (op == H("shfl")) { uint64_t c = A(3); unsigned mask = (unsigned)A(4); int width = 32 - (int)((c >> 8) & 31); const S &md = i.m[1]; int e = md == "idx" ? 1 : md == "bfly" ? 2 : md == "up" ? 3 : 4; D() = (uint32_t)emu_warp(e, mask, (uint32_t)A(1), (int)A(2), width, "ptx", i.line); continue; }
            if (op == H("vote")) { bool any = hash_has(H("any")), all = hash_has(H("all")); unsigned mask = (unsigned)A(2), b = (unsigned)emu_warp(5, mask, A(1) != 0, 0, 32, "ptx", i.line); D() = any ? b != 0 : all ? b == mask : b; continue; }
            if (op == H("bar") || op == H("membar") || op == H("fence") || op == H("griddepcontrol")) continue;
            if (op == H("activemask")) bad("not deterministic; pass the mask");
            if (op == H("atom") || op == H("red")) { bool red = op == H("red"); int k = red ? 0 : 1; int w = W; uintptr_t a = addr(i.o[k], hash_has(H("shared"))); touch(a, w, true, true); uint64_t o = 0; memcpy(&o, (void *)a, w); uint64_t v = val(i.o[k + 1]), x; if (hash_has(H("add"))) x = ty == H("f32") ? f2u(u2f(o) + u2f(v)) : o + v; else if (hash_has(H("exch"))) x = v; else if (hash_has(H("max"))) x = T0 == 's' ? (sx(o, w) < sx(v, w) ? v : o) : (o < v ? v : o); else if (hash_has(H("cas"))) x = zx(o, w) == zx(v, w) ? val(i.o[k + 2]) : o; else bad("atomic"); memcpy((void *)a, &x, w); if (!red) D() = o; continue; }
            if (op == H("dp4a")) { bool sa = i.m[0] == "s32", sb = i.m[1] == "s32"; uint32_t a = (uint32_t)A(1), b = (uint32_t)A(2); int32_t c = (int32_t)A(3); for (int k = 0; k < 4; k++) { int x = sa ? (int8_t)(a >> 8 * k) : (uint8_t)(a >> 8 * k), y = sb ? (int8_t)(b >> 8 * k) : (uint8_t)(b >> 8 * k); c += x * y; } D() = (uint32_t)c; continue; }
            if (op == H("mma")) { if (i.text.find("m16n8k16.row.col.f32.f16.f16.f32") == S::npos && i.text.find("m16n8k16.row.col.f32.bf16.bf16.f32") == S::npos) bad("shape"); bool bf = hash_has(H("bf16")); auto cv = [&](uint64_t v, int h) { v = v >> (16 * h) & 0xffff; return bf ? b2f(v) : h2f(v); }; unsigned full = ~0u; int lane = threadIdx.x & 31, g = lane >> 2, t = lane & 3; float acc[4]; for (int k = 0; k < 4; k++) acc[k] = u2f(val(i.o[3].v[k]));
                uint32_t a[4], b[2]; for (int k = 0; k < 4; k++) a[k] = (uint32_t)val(i.o[1].v[k]); for (int k = 0; k < 2; k++) b[k] = (uint32_t)val(i.o[2].v[k]);
                for (int row = 0; row < 2; row++) for (int h = 0; h < 2; h++) for (int q = 0; q < 4; q++) { uint32_t av = (uint32_t)emu_warp(1, full, a[row + 2 * h], g * 4 + q, 32, "ptx", i.line); for (int j = 0; j < 2; j++) { uint32_t bv = (uint32_t)emu_warp(1, full, b[h], (2 * t + j) * 4 + q, 32, "ptx", i.line); acc[row * 2 + j] += cv(av, 0) * cv(bv, 0) + cv(av, 1) * cv(bv, 1); } }
                for (int k = 0; k < 4; k++) r[i.o[0].v[k].r] = f2u(acc[k]); continue; }
            if (op == H("setp")) { const S &c = i.m[0]; bool q; if (T0 == 'f') { double a = ty == H("f32") ? u2f(A(1)) : h2f(A(1)), b = ty == H("f32") ? u2f(A(2)) : h2f(A(2)); bool un = std::isnan(a) || std::isnan(b); S k = c; bool u = k.size() == 3 && k[2] == 'u'; if (u) k = k.substr(0, 2); q = k == "lt" ? a < b : k == "le" ? a <= b : k == "gt" ? a > b : k == "ge" ? a >= b : k == "eq" ? a == b : k == "ne" ? a != b && !un : k == "nan" ? un : (bad("cmp"), false); if (u && un) q = true; }
                else { int w = W; int64_t a = sx(A(1), w), b = sx(A(2), w); uint64_t x = zx(A(1), w), y = zx(A(2), w); bool s = T0 == 's'; q = c == "eq" ? x == y : c == "ne" ? x != y : c == "lt" ? (s ? a < b : x < y) : c == "le" ? (s ? a <= b : x <= y) : c == "gt" ? (s ? a > b : x > y) : c == "ge" ? (s ? a >= b : x >= y) : (bad("cmp"), false); }
                if (i.o.size() > 3) { bool e = A(3) != 0; const S &bo = i.m[1]; q = bo == "and" ? q && e : bo == "or" ? q || e : q != e; } D() = q; continue; }
            if (op == H("selp")) { D() = A(3) ? A(1) : A(2); continue; }
            if (ty == H("f32") || ty == H("f16") || ty == H("bf16") || ty == H("f16x2") || ty == H("bf16x2") || ty == H("f64")) {
                auto one = [&](uint32_t t, uint64_t a, uint64_t b, uint64_t c) -> uint64_t { auto in = [&](uint64_t v) -> double { return t == H("f32") ? u2f(v) : t == H("f16") ? h2f(v) : b2f(v); }; auto out = [&](double v) { return t == H("f32") ? f2u((float)v) : t == H("f16") ? d2h(v) : d2b(v); };
                    if (t == H("f64")) bad("f64"); if (op == H("fma") || op == H("mad")) return t == H("f32") ? f2u(fmaf(u2f(a), u2f(b), u2f(c))) : out(in(a) * in(b) + in(c)); if (op == H("neg")) return out(-in(a)); if (op == H("abs")) return out(fabs(in(a))); if (op == H("ex2")) return out(exp2(in(a))); if (op == H("lg2")) return out(log2(in(a))); if (op == H("rsqrt")) return out(1 / sqrt(in(a))); if (op == H("rcp")) return out(1 / in(a)); if (op == H("sqrt")) return out(sqrt(in(a))); if (op == H("tanh")) return out(tanh(in(a))); if (op == H("sin")) return out(sin(in(a))); if (op == H("cos")) return out(cos(in(a))); if (t == H("f32")) return f2u(alu<float>(op, u2f(a), u2f(b))); return out(alu<double>(op, in(a), in(b))); };
                uint64_t a = A(1), b = i.o.size() > 2 ? A(2) : 0, c = i.o.size() > 3 ? A(3) : 0; if (ty == H("bf16x2") || ty == H("f16x2")) { uint32_t e = ty == H("f16x2") ? H("f16") : H("bf16"); D() = one(e, a & 0xffff, b & 0xffff, c & 0xffff) | one(e, a >> 16 & 0xffff, b >> 16 & 0xffff, c >> 16 & 0xffff) << 16; } else D() = one(ty, a, b, c); continue; }
            // integers
            int w = W; bool s = T0 == 's'; if (!w) bad("type"); uint64_t a = i.o.size() > 1 ? A(1) : 0, b = i.o.size() > 2 ? A(2) : 0, c = i.o.size() > 3 ? A(3) : 0, o;
            if (op == H("add")) o = a + b; else if (op == H("sub")) o = a - b;
            else if (op == H("mul") || op == H("mad")) { if (hash_has(H("wide"))) { o = s ? (uint64_t)(sx(a, w) * sx(b, w)) : zx(a, w) * zx(b, w); if (op == H("mad")) o += c; D() = zx(o, 2 * w); continue; } if (hash_has(H("hi"))) o = s ? (uint64_t)(((__int128)sx(a, w) * sx(b, w)) >> (8 * w)) : (uint64_t)(((unsigned __int128)zx(a, w) * zx(b, w)) >> (8 * w)); else o = a * b; if (op == H("mad")) o += c; }
            else if (op == H("div") || op == H("rem")) { if (!zx(b, w)) emu_fail("ptx", "line %d: division by zero", i.line); o = s ? (uint64_t)(op == H("div") ? sx(a, w) / sx(b, w) : sx(a, w) % sx(b, w)) : op == H("div") ? zx(a, w) / zx(b, w) : zx(a, w) % zx(b, w); }
            else if (op == H("and")) o = a & b; else if (op == H("or")) o = a | b; else if (op == H("xor")) o = a ^ b; else if (op == H("not")) o = ty == H("pred") ? !a : ~a; else if (op == H("neg")) o = -a; else if (op == H("abs")) o = (uint64_t)llabs(sx(a, w));
            else if (op == H("shl")) o = (uint32_t)b >= 8u * w ? 0 : a << (uint32_t)b; else if (op == H("shr")) { uint32_t q = (uint32_t)b; o = s ? (uint64_t)(sx(a, w) >> (q >= 8u * w ? 8 * w - 1 : (int)q)) : q >= 8u * w ? 0 : zx(a, w) >> q; }
            else if (op == H("min")) o = s ? (sx(a, w) < sx(b, w) ? a : b) : (zx(a, w) < zx(b, w) ? a : b); else if (op == H("max")) o = s ? (sx(a, w) > sx(b, w) ? a : b) : (zx(a, w) > zx(b, w) ? a : b);
            else if (op == H("popc")) { D() = (uint64_t)__builtin_popcountll(zx(a, w)); continue; } else if (op == H("clz")) { uint64_t z = zx(a, w); D() = z ? (uint64_t)__builtin_clzll(z) - (64 - 8 * w) : 8 * w; continue; }
            else if (op == H("bfi")) { uint64_t p = A(3) & 255, l = val(i.o[4]) & 255; uint64_t m = (l >= 64 ? ~0ull : (1ull << l) - 1) << p; o = (b & ~m) | ((a << p) & m); } else if (op == H("bfe")) { uint64_t p = b & 255, l = c & 255; uint64_t m = l >= 64 ? ~0ull : (1ull << l) - 1; o = (zx(a, w) >> p) & m; if (s && l && (o >> (l - 1) & 1)) o |= ~m; }
            else if (op == H("prmt")) { uint64_t v = zx(a, 4) | zx(b, 4) << 32; o = 0; for (int k = 0; k < 4; k++) { unsigned sel = (unsigned)(c >> (4 * k)) & 15; uint64_t by = v >> (8 * (sel & 7)) & 255; if (sel & 8) by = by & 128 ? 255 : 0; o |= by << (8 * k); } }
            else if (op == H("lop3")) { uint64_t lut = val(i.o[4]); o = 0; for (int k = 0; k < 32; k++) o |= (lut >> ((a >> k & 1) << 2 | (b >> k & 1) << 1 | (c >> k & 1)) & 1) << k; } else if (op == H("shf")) { uint64_t v = zx(a, 4) | zx(b, 4) << 32; unsigned q = (unsigned)c & 31; o = hash_has(H("l")) ? v << q >> 32 : v >> q; }
            else bad("opcode");
            D() = ty == H("pred") ? (o & 1) : zx(o, w); }
    } };
// called by the launch code: is there PTX for this kernel?
const void *emu_ptx_find(const S &mangled) { if (!g_loaded) load(); S m = mangled; if (m.compare(0, 3, "_ZL") == 0) m.erase(2, 1); auto it = g_fns.find(m); return it == g_fns.end() ? nullptr : &it->second; }
bool emu_ptx_on() { if (!g_loaded) load(); return !g_fns.empty(); }
void emu_ptx_layout(const void *fn, const char *args, const std::vector<std::pair<int, int>> &off, std::vector<char> &out) { const Fn *f = (const Fn *)fn; if (off.size() != f->plist.size()) emu_fail("ptx", "parameter count"); out.assign(f->psize + 8, 0); for (size_t i = 0; i < off.size(); i++) { if (off[i].second != f->plist[i].second) emu_fail("ptx", "parameter %zu: %d bytes against %d", i, off[i].second, f->plist[i].second); memcpy(&out[f->plist[i].first], args + off[i].first, off[i].second); } }
void emu_ptx_exec(const void *fn, void *par) { Fn *f = (Fn *)fn; uintptr_t a, b, c, d; emu_regions(&a, &b, &c, &d); char *local = (char *)__builtin_alloca_with_align(f->lsize + 16, 128); memset(local, 0xFF, f->lsize); Th t{*f, std::vector<uint64_t>(f->regs.size(), 0xdeadbeefdeadbeefull), (const char *)par, a, local, nullptr}; t.run(); }
