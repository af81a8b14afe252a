"The trainer, Python's package diffsim, where PythonCall is loaded."
module DiffSimEnvsPythonCallExt

using DiffSimEnvs: ACTIVATIONS, Evaluation, MLPPolicy, Run, SQUASHES
using PythonCall: Py, pybuiltins, pyconvert, pydict, pyhasattr, pyimport, pyis, pylist, pyisnull

"""
What `call` returns, given Python's package, during which libraries use their own functions.

Where Julia started the process, its `sin`, `cos` and others (libopenlibm) stand in front of the system's, and torch would
compute by them: its numbers would differ from those of a process that Python started by the last bits.
"""
function with_diffsim(call)
    sys, os = pyimport("sys"), pyimport("os")
    # Linux alone has such a flag, and it has no effect on what is loaded already.
    pyhasattr(os, "RTLD_DEEPBIND") || return call(diffsim())
    "torch" in sys.modules && !KNOWN[] && @warn "torch was loaded before the first call of diffsim: training uses Julia's \
        sin, cos, …, and its numbers agree with those of a process of Python's to rounding" maxlog = 1
    KNOWN[] = true
    before = sys.getdlopenflags()
    sys.setdlopenflags(before | os.RTLD_DEEPBIND)
    try
        return call(diffsim())
    finally
        sys.setdlopenflags(before)
    end
end

"Whether the flags have been right for torch, or the user has been told that they were not."
const KNOWN = Ref(false)

function diffsim()
    try
        return pyimport("diffsim")
    catch
        executable = pyconvert(String, pyimport("sys").executable)
        error(
            "the Python that PythonCall uses ($executable) has no package diffsim: install it there, or name another Python by " *
            "JULIA_PYTHONCALL_EXE (and JULIA_CONDAPKG_BACKEND=Null) before PythonCall is loaded",
        )
    end
end

# Settings as Python's configuration has them.
plain(value::Symbol) = string(value)
plain(value::NamedTuple) = pydict(Dict(string(k) => plain(v) for (k, v) in pairs(value)))
plain(value::AbstractDict) = pydict(Dict(string(k) => plain(v) for (k, v) in value))
plain(value::Union{Tuple,AbstractVector}) = pylist(map(plain, collect(Any, value)))
plain(value) = value

section(value::Union{Symbol,AbstractString}) = pydict(Dict("name" => string(value)))
section(value) = plain(value)

"Sections of which a name alone can be given."
const NAMED = (:optimizer, :algorithm, :policy)

function train(name; out, settings...)
    given = (k => (k in NAMED ? section(v) : plain(v)) for (k, v) in settings)
    file = with_diffsim(python -> python.train(name; out = String(out), given...))
    return Run(pyconvert(String, pyimport("os").fspath(file.folder)))
end

function evaluate(folder; settings...)
    e = with_diffsim(python -> python.evaluate(folder; (k => plain(v) for (k, v) in settings)...))
    low, high = pyconvert(Tuple{Float64,Float64}, e.interval())
    return Evaluation(
        pyconvert(Float64, e.mean), low, high, pyconvert(Vector{Float64}, e.returns), pyconvert(Vector{Int}, e.lengths),
        pyconvert(String, pybuiltins.str(e)),
    )
end

history(folder) = Dict(
    pyconvert(String, name) => pyconvert(Vector{Float64}, column.astype("float64")) for
    (name, column) in with_diffsim(python -> python.RunFile(folder).history()).items()
)

function load_policy(folder; checkpoint)
    return with_diffsim(python -> policy_of(python.RunFile(folder), folder, checkpoint))
end

function policy_of(file, folder, checkpoint)
    config = file.config().policy
    name = pyconvert(String, config.name)
    name == "mlp" || throw(ArgumentError("the policy of $folder is $(repr(name)); only an mlp is read into Julia's arrays"))
    known = file.checkpoints()
    checkpoint == "best" && !pyconvert(Bool, known.__contains__("best")) && (checkpoint = "last")
    state = file.checkpoint(checkpoint)["policy"]
    T = pyconvert(String, pybuiltins.str(state["mean"].dtype)) == "torch.float64" ? Float64 : Float32
    array(A, key) = pyconvert(A, state[key].numpy())
    layers = sort!([parse(Int, split(key, '.')[2]) for key in pyconvert(Vector{String}, pylist(state)) if endswith(key, ".weight")])
    activation = pyconvert(String, config.options.get("activation", "tanh"))
    return MLPPolicy(
        (array(Vector{T}, key) for key in ("mean", "scale", "centre", "half_range"))...,
        [array(Matrix{T}, "network.$i.weight") for i in layers],
        [array(Vector{T}, "network.$i.bias") for i in layers],
        ACTIVATIONS[activation],
        SQUASHES[pyconvert(String, config.squash)],
    )
end

end
