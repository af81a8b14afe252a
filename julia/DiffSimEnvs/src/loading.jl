"""
    load_simulator(file, name) -> Type

The simulator type `name` that a Julia file defines.  The file is included into a module of its own, anew each time.
"""
function load_simulator(file::AbstractString, name::AbstractString)
    isfile(file) || throw(ArgumentError("there is no file $(repr(file)), as seen from $(repr(pwd()))"))
    space = Module(Symbol(first(splitext(basename(file)))))
    Core.eval(space, :(eval(x) = Core.eval($space, x)))
    Core.eval(space, :(include(path) = Base.include($space, path)))
    # What the file trains is not for now: the trainer is asking for the simulator.
    LOADING[] = true
    try
        Base.include(space, abspath(file))
    finally
        LOADING[] = false
    end
    return find(space, name, basename(file))
end

"The simulator type `name` of this package."
load_simulator(name::AbstractString) = find(@__MODULE__, name, "DiffSimEnvs")

function find(space, name, where_)
    known = [string(n) for n in names(space; all = true) if is_simulator(space, n)]
    name in known && return getfield(space, Symbol(name))
    # A type that a model was made into has a name of its own beside that of the constant.
    for constant in known
        string(nameof(getfield(space, Symbol(constant)))) == name && return getfield(space, Symbol(constant))
    end
    if isdefined(space, Symbol(name)) && where_ != "DiffSimEnvs"
        value = getfield(space, Symbol(name))
        throw(ArgumentError("$name of $where_ is a $(nameof(typeof(value))), no simulator; a model becomes one by: const Name = simulator($name; inputs = …, cost = …)"))
    end
    throw(ArgumentError("$where_ defines no simulator $(repr(name)); it defines: $(isempty(known) ? "(none)" : join(known, ", "))"))
end

function is_simulator(space, name)
    isdefined(space, name) && !Base.isdeprecated(space, name) || return false
    value = getfield(space, name)
    value isa Type && value <: Simulator && !isabstracttype(value) || return false
    return parentmodule(value) === space || Base.invokelatest(is_model, value)
end

"""
    explain(error, backtrace, file = "") -> String

An error with Julia's message and the line it comes from: that in `file` or, failing that, the first outside of this
package and of Julia itself.
"""
function explain(error, backtrace, file = "")
    error isa LoadError && return explain(error.error, backtrace, file == "" ? error.file : file)
    error isa TaskFailedException && return explain(error.task.exception, error.task.backtrace, file)
    error isa CompositeException && return explain(first(error.exceptions), backtrace, file)
    message = replace(sprint(showerror, error; context = :limit => true), r"\s*\n\s*" => " ")
    frames = filter(f -> f.line > 0 && !f.from_c, stacktrace(backtrace))
    places = [(String(f.file), f.line, f.func) for f in frames]
    here = dirname(@__DIR__)
    mine = findfirst(q -> file != "" && q[1] == file, places)
    other = findfirst(q -> isabspath(q[1]) && !startswith(q[1], joinpath(here, "src")) || occursin("simulators", q[1]), places)
    at = something(mine, other, Some(nothing))
    if at === nothing
        return message
    end
    path, line, func = places[at]
    inside = func === Symbol("top-level scope") ? "" : ", in $func"
    return "$message (at $path:$line$inside)"
end
