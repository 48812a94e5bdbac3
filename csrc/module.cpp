#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <limits>
#include <stdexcept>

#include "machine.hpp"
#include "program.hpp"

namespace py = pybind11;
using namespace finepruning;

namespace {

template <class T>
using Array = py::array_t<T, py::array::c_style>;

ValueType value_type_of(const std::string& name) {
  const char* names[] = {"float32", "bfloat16", "float16"};
  for (int i = 0; i < kValueTypes; ++i)
    if (name == names[i]) return static_cast<ValueType>(i);
  throw std::invalid_argument("values must be float32, bfloat16 or float16, not " + name);
}

// Values of 16 bits come as their bits, in an array of uint16.
CsrView view(const py::array& value, const Array<int32_t>& column, const Array<int32_t>& rowptr,
             const std::string& values) {
  const ValueType type = value_type_of(values);
  if (!(type == ValueType::kFloat32 ? py::isinstance<Array<float>>(value)
                                    : py::isinstance<Array<uint16_t>>(value)))
    throw std::invalid_argument(values + " values must be a contiguous array of " +
                                (type == ValueType::kFloat32 ? "float32" : "uint16"));
  if (value.ndim() != 1 || column.ndim() != 1 || rowptr.ndim() != 1 || value.size() != column.size() ||
      rowptr.size() < 2)
    throw std::invalid_argument("CSR needs one value and one column per nonzero, and rows + 1 row pointers");
  return {value.data(), type, column.data(), rowptr.data(), rowptr.size() - 1, value.size()};
}

Finish finish(const py::object& bias, int residual, const std::string& activation) {
  Finish f;
  f.residual = residual;
  f.low = -std::numeric_limits<float>::infinity();
  f.high = std::numeric_limits<float>::infinity();
  if (activation == "relu" || activation == "relu6")
    f.low = 0.0f;
  else if (activation != "none")
    throw std::invalid_argument("only relu and relu6 fuse into a sparse step, not " + activation);
  if (activation == "relu6") f.high = 6.0f;
  if (!bias.is_none()) {
    const auto values = bias.cast<Array<float>>();
    f.bias.assign(values.data(), values.data() + values.size());
  }
  return f;
}

Activation activation_of(const std::string& name) {
  const char* names[] = {"none", "relu", "relu6", "hardswish", "hardsigmoid", "silu", "sigmoid", "gelu"};
  for (int i = 0; i < 8; ++i)
    if (name == names[i]) return static_cast<Activation>(i);
  throw std::invalid_argument("unknown activation " + name);
}

Binary binary_of(const std::string& name) {
  if (name == "add") return Binary::kAdd;
  if (name == "mul") return Binary::kMul;
  throw std::invalid_argument("unknown operation " + name);
}

Mapping mapping_of(const std::string& name) {
  const char* names[] = {"lanes", "rows", "flat", "matrix"};
  for (int i = 0; i < 4; ++i)
    if (name == names[i]) return static_cast<Mapping>(i);
  throw std::invalid_argument("unknown mapping " + name);
}

constexpr const char* kWayNames[kGatherWays] = {"loads", "instructions"};

GatherWay gather_way(const std::string& name, const Isa& isa) {
  if (name == "fastest") return select_gather(isa);
  for (int i = 0; i < kGatherWays; ++i)
    if (name == kWayNames[i]) return static_cast<GatherWay>(i);
  throw std::invalid_argument("unknown way to gather " + name);
}

Across across(bool lanes) { return lanes ? Across::kImages : Across::kMap; }

int thread_count(int threads) {
  if (threads < 1 || threads > 4096) throw std::invalid_argument("threads must lie in [1, 4096]");
  return threads;
}

using Pair = std::pair<int64_t, int64_t>;

ConvShape shape_of(int64_t channels, Pair size, int64_t outputs, Pair kernel, Pair stride, Pair padding,
                   Pair dilation, int64_t groups) {
  return {channels,       size.first,      size.second,   outputs,       kernel.first,
          kernel.second,  stride.first,    stride.second, padding.first, padding.second,
          dilation.first, dilation.second, groups};
}

std::shared_ptr<PackedConv> make_packed(const py::array& value, const Array<int32_t>& column,
                                        const Array<int32_t>& rowptr, int64_t channels, Pair size,
                                        int64_t outputs, Pair kernel, Pair stride, Pair padding,
                                        Pair dilation, int64_t groups, const std::string& mapping,
                                        int64_t matrix_blocks, bool pooled, const std::pair<int, int>& tile,
                                        int64_t block_units, const std::string& values, int threads,
                                        int64_t source_band, bool banded) {
  thread_count(threads);
  const ConvShape shape = shape_of(channels, size, outputs, kernel, stride, padding, dilation, groups);
  const CsrView csr = view(value, column, rowptr, values);
  py::gil_scoped_release release;
  const MapBands bands{source_band, banded};
  if (mapping == "planar")
    return PackedConv::planar(shape, csr, select_isa(Across::kMap), pooled, threads, bands);
  const Mapping map = mapping_of(mapping);
  const Isa& isa = select_isa(across(map == Mapping::kLanes || map == Mapping::kMatrix));
  return std::make_shared<PackedConv>(shape, csr, map, isa, matrix_blocks, pooled, threads, bands,
                                      PackedConv::Choice{tile.first, tile.second, block_units});
}

double modelled_cycles(const py::array& value, const Array<int32_t>& column, const Array<int32_t>& rowptr,
                       int64_t channels, Pair size, int64_t outputs, Pair kernel, Pair stride, Pair padding,
                       Pair dilation, int64_t groups, const std::string& mapping, const std::string& values) {
  const ConvShape shape = shape_of(channels, size, outputs, kernel, stride, padding, dilation, groups);
  const CsrView csr = view(value, column, rowptr, values);
  py::gil_scoped_release release;
  const bool planar = mapping == "planar";
  return PackedConv::modelled(shape, csr, planar, select_isa(across(!planar)));
}

// rows: of a band; 0: the map lies whole.
Bands bands_of(Pair size, int64_t rows) {
  if (rows < 0 || rows > size.first) throw std::invalid_argument("bands must have rows of the map");
  return {size.first, size.second, rows > 0 ? rows : size.first};
}

std::string kernel_name(const PackedConv& p) {
  const char* mapping[] = {"lanes", "rows", "flat", "matrix"};
  return std::string("sparse_") + mapping[static_cast<int>(p.mapping)] + "_" + std::to_string(p.tile_rows) +
         "x" + std::to_string(p.tile_columns) + (p.pooled ? "_pool_" : "_") + p.isa->name;
}

py::list kernels() {
  py::list rows;
  for (const char* name : kIsaNames) {
    const Isa* isa = find_isa(name);
    if (isa == nullptr) continue;
    for (int i = 0; i < isa->tile_count; ++i) {
      py::dict row;
      row["name"] = "sparse_tile";
      row["isa"] = name;
      row["tile"] = py::make_tuple(isa->tiles[i].rows, isa->tiles[i].columns);
      row["way"] = py::none();
      rows.append(row);
    }
    for (int way = 0; way < kGatherWays; ++way) {
      if (isa->gather_rows[way][0] == nullptr) continue;
      py::dict row;
      row["name"] = "gather_rows";
      row["isa"] = name;
      row["tile"] = py::none();
      row["way"] = kWayNames[way];
      rows.append(row);
    }
    for (const char* other : {"gather_rows_block", "gather_flat_block", "gather_lanes_block", "pool",
                              "pool_lanes", "elementwise", "expand", "broadcast", "to_lanes", "from_lanes"}) {
      py::dict row;
      row["name"] = other;
      row["isa"] = name;
      row["tile"] = py::none();
      row["way"] = py::none();
      rows.append(row);
    }
  }
  return rows;
}

}  // namespace

PYBIND11_MODULE(_core, m) {
  m.doc() = "Sparse convolution and fully connected kernels for the CPU.";

  // The user's to mend, and told like all that is.
  py::register_exception_translator([](std::exception_ptr thrown) {
    try {
      if (thrown) std::rethrow_exception(thrown);
    } catch (const IsaUnavailable& error) {
      PyErr_SetString(py::module_::import("finepruning.errors").attr("ArgumentError").ptr(), error.what());
    }
  });

  py::class_<PackedConv, std::shared_ptr<PackedConv>>(m, "PackedConv")
      .def(py::init(&make_packed), py::arg("value"), py::arg("column"), py::arg("rowptr"), py::kw_only(),
           py::arg("channels"), py::arg("size"), py::arg("outputs"), py::arg("kernel"), py::arg("stride"),
           py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("mapping"),
           py::arg("matrix_blocks") = 1, py::arg("pooled") = false,
           py::arg("tile") = std::pair<int, int>(0, 0), py::arg("block_units") = 0,
           py::arg("values") = "float32", py::arg("threads") = 1, py::arg("source_band") = 0,
           py::arg("banded") = false)
      .def_property_readonly("kernel", &kernel_name)
      .def_property_readonly("nbytes", &PackedConv::bytes)
      .def_property_readonly("cost", [](const PackedConv& p) { return p.cost; })
      .def_property_readonly("tile", [](const PackedConv& p) { return Pair(p.tile_rows, p.tile_columns); })
      .def_property_readonly("blocks", &PackedConv::block_count)
      .def_property_readonly("pooled", [](const PackedConv& p) { return p.pooled; });

  py::class_<Context, std::shared_ptr<Context>>(m, "Context")
      .def_property_readonly("nbytes", &Context::bytes);

  py::class_<Program, std::shared_ptr<Program>>(m, "Program")
      .def(py::init<int64_t>(), py::arg("arena_floats"))
      .def(
          "buffer",
          [](Program& p, const std::string& kind, int64_t offset, int64_t size, int64_t stride, int64_t turns,
             int64_t bands, int64_t band) {
            if (kind != "arena" && kind != "input" && kind != "output")
              throw std::invalid_argument("unknown kind of buffer " + kind);
            return p.add_buffer(kind == "arena"   ? Buffer::kArena
                                : kind == "input" ? Buffer::kInput
                                                  : Buffer::kOutput,
                                offset, size, stride, turns, bands, band);
          },
          py::arg("kind"), py::arg("offset"), py::arg("size"), py::arg("stride") = 0, py::arg("turns") = 1,
          py::arg("bands") = 1, py::arg("band") = 0)
      .def("loop", &Program::add_loop, py::arg("first"), py::arg("turns"))
      .def(
          "conv",
          [](Program& p, int source, int target, std::shared_ptr<PackedConv> packed, const py::object& bias,
             int residual, const std::string& activation, int64_t images) {
            add_conv(p, source, target, std::move(packed), finish(bias, residual, activation), images);
          },
          py::arg("source"), py::arg("target"), py::arg("packed").none(false), py::kw_only(),
          py::arg("bias") = py::none(), py::arg("residual") = -1, py::arg("activation") = "none",
          py::arg("images"))
      .def(
          "gather_linear",
          [](Program& p, int source, int target, const py::array& value, const Array<int32_t>& column,
             const Array<int32_t>& rowptr, int64_t columns, const py::object& bias, int residual,
             const std::string& activation, int64_t images, const std::string& values,
             const std::string& way) {
            const Isa& isa = select_isa(Across::kMap);
            add_gather(p, source, target, isa, gather_way(way, isa), view(value, column, rowptr, values),
                       columns, finish(bias, residual, activation), images);
          },
          py::arg("source"), py::arg("target"), py::arg("value"), py::arg("column"), py::arg("rowptr"),
          py::kw_only(), py::arg("columns"), py::arg("bias") = py::none(), py::arg("residual") = -1,
          py::arg("activation") = "none", py::arg("images"), py::arg("values") = "float32",
          py::arg("way") = "fastest")
      .def(
          "pool",
          [](Program& p, int source, int target, Pair size, Pair out, Pair kernel, Pair stride, Pair padding,
             Pair dilation, int64_t images, int64_t channels, Pair bands, bool lanes, bool maximum,
             bool count_include_pad, int64_t divisor) {
            PoolArgs args{size.first,
                          size.second,
                          out.first,
                          out.second,
                          kernel.first,
                          kernel.second,
                          stride.first,
                          stride.second,
                          padding.first,
                          padding.second,
                          dilation.first,
                          dilation.second,
                          maximum,
                          count_include_pad,
                          divisor,
                          0,
                          0,
                          0,
                          0};
            const PoolMaps maps{images, channels, lanes, bands_of(size, bands.first),
                                bands_of(out, bands.second)};
            add_pool(p, source, target, select_isa(across(lanes)), args, maps);
          },
          py::arg("source"), py::arg("target"), py::kw_only(), py::arg("size"), py::arg("out"),
          py::arg("kernel"), py::arg("stride"), py::arg("padding"), py::arg("dilation") = Pair(1, 1),
          py::arg("images"), py::arg("channels"), py::arg("bands") = Pair(0, 0), py::arg("lanes"),
          py::arg("maximum"), py::arg("count_include_pad") = true, py::arg("divisor") = 0)
      .def(
          "elementwise",
          [](Program& p, int a, int b, int target, int64_t n, const std::string& op,
             const std::string& activation) {
            add_elementwise(p, a, b, target, select_isa(Across::kMap), n, binary_of(op),
                            activation_of(activation));
          },
          py::arg("a"), py::arg("b"), py::arg("target"), py::kw_only(), py::arg("n"), py::arg("op") = "add",
          py::arg("activation") = "none")
      .def(
          "broadcast",
          [](Program& p, int a, int b, int target, int64_t images, int64_t channels, int64_t n, bool lanes,
             const std::string& op, const std::string& activation) {
            add_broadcast(p, a, b, target, select_isa(across(lanes)), images, channels, n, lanes,
                          binary_of(op), activation_of(activation));
          },
          py::arg("a"), py::arg("b"), py::arg("target"), py::kw_only(), py::arg("images"),
          py::arg("channels"), py::arg("n"), py::arg("lanes"), py::arg("op"), py::arg("activation") = "none")
      .def("copy", &add_copy, py::arg("source"), py::arg("target"), py::kw_only(), py::arg("images"),
           py::arg("n"), py::arg("target_offset"), py::arg("target_stride"))
      .def(
          "transpose",
          [](Program& p, int source, int target, int64_t images, int64_t n, bool to_lanes) {
            add_transpose(p, source, target, select_isa(Across::kImages), images, n, to_lanes);
          },
          py::arg("source"), py::arg("target"), py::kw_only(), py::arg("images"), py::arg("n"),
          py::arg("to_lanes"))
      .def("__len__", &Program::size)
      .def("context_bytes", &Program::context_bytes, py::arg("threads"))
      .def("acquire", &Program::acquire, py::arg("threads"))
      .def(
          "release", [](Program& p, std::shared_ptr<Context> context) { p.release(std::move(context)); },
          py::arg("context").none(false))
      .def(
          "run",
          [](const Program& p, Context& context, size_t first, size_t last, const Array<float>& input,
             Array<float>& output) {
            const float* x = input.data();
            float* y = output.mutable_data();
            const int64_t nx = input.size(), ny = output.size();
            py::gil_scoped_release release;
            p.run(context, first, last, x, nx, y, ny);
          },
          py::arg("context"), py::arg("first"), py::arg("last"), py::arg("input"),
          py::arg("output").noconvert())
      .def(
          "view",
          [](const Program& p, const std::shared_ptr<Context>& context, int id) {
            p.check(*context);
            const Buffer& b = p.buffer(id, 0, p.bands(id));
            if (b.kind != Buffer::kArena) throw std::invalid_argument("only arena buffers can be viewed");
            float* data = context->arena() + b.offset;
            if (b.bands == 1) return py::array_t<float>({b.size}, {4}, data, py::cast(context));
            return py::array_t<float>({b.bands, b.size}, {4 * b.band, int64_t{4}}, data, py::cast(context));
          },
          py::arg("context").none(false), py::arg("buffer"));

  m.def("modelled_cycles", &modelled_cycles, py::arg("value"), py::arg("column"), py::arg("rowptr"),
        py::kw_only(), py::arg("channels"), py::arg("size"), py::arg("outputs"), py::arg("kernel"),
        py::arg("stride"), py::arg("padding"), py::arg("dilation"), py::arg("groups"), py::arg("mapping"),
        py::arg("values") = "float32");
  m.def(
      "bands",
      [](Pair size, int threads) {
        const int64_t rows = band_rows(size.first, size.second, thread_count(threads));
        const Bands bands = bands_of(size, rows);
        return py::make_tuple(bands.rows, bands.count(), bands.pitch());
      },
      py::arg("size"), py::kw_only(), py::arg("threads"));
  m.def("kernels", &kernels);
  m.def("lanes", [] { return select_isa(Across::kImages).lanes; });
  m.def("map_lanes", [] { return select_isa(Across::kMap).lanes; });
  m.def("isa", [] { return std::string(isa_name()); });
  m.def("map_isa", [] { return std::string(select_isa(Across::kMap).name); });
  m.def(
      "fma_peak", [](int threads) { return fma_peak(thread_count(threads)); }, py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
  m.def(
      "read_bandwidth", [](int threads) { return read_bandwidth(thread_count(threads)); }, py::arg("threads"),
      py::call_guard<py::gil_scoped_release>());
}
