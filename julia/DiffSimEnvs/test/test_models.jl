include("tools.jl")
using LinearAlgebra: Diagonal, I
using OrdinaryDiffEqRosenbrock: Rodas5P
using SciMLBase: CallbackSet, ContinuousCallback, ODEFunction, ODEProblem, SecondOrderODEProblem, SplitODEProblem, remake
using Test

# A mass on a spring, pushed: its parameters are [mass, stiffness, force].
function pushed!(dx, x, p, t)
    dx[1] = x[2]
    dx[2] = (p[3] - p[2] * x[1]) / p[1]
end
pushed(x, p, t) = [x[2], (p.force - p.stiffness * x[1]) / p.mass]

common = (
    cost = (x, p, t) -> x[1]^2 + 0.1 * p[3]^2, dt = 0.3, episode_steps = 20, box = Box([2.0, 2.0]), start = Box([1.0, 0.5]),
)
spring = ODEProblem(pushed!, [1.0, 0.0], (0.0, 1.0), [2.0, 3.0, 0.0])

"The interval in closed form; `z = [position, velocity, force, mass, stiffness]`."
function swung(z, dt = 0.3)
    x, v, force, mass, stiffness = z
    rate, rest = sqrt(stiffness / mass), force / stiffness
    c, s = cos(rate * dt), sin(rate * dt)
    return [rest + (x - rest) * c + v / rate * s, -(x - rest) * rate * s + v * c]
end

@testset "problems with a vector and with a named tuple of parameters, in place and not" begin
    vector = simulator(spring; common..., inputs = [3 => (-1.0, 1.0)], parameters = [1 => :mass, 2 => :stiffness])
    named = simulator(
        ODEProblem(pushed, [1.0, 0.0], (0.0, 1.0), (mass = 2.0, stiffness = 3.0, force = 0.0));
        common..., inputs = [:force => (-1.0, 1.0)], state = ["position", "velocity"],
        parameters = [:mass => Parameter(:mass, 2.0, "kg"; low = 0.0), :stiffness => :stiffness],
    )
    z = [0.7, -0.4, 0.5, 2.5, 3.5]
    for S in (vector, named)
        batch = open_simulator(S)
        y, J, failures = ask(batch, INTERVAL, reshape(z[1:2], 2, 1), reshape(z[3:3], 1, 1), z[4:5])
        @test failures == 0
        @test y[:, 1] ≈ [swung(z); z[1]^2 + 0.1 * z[3]^2] atol = 1e-8
        @test J[1:2, :, 1] ≈ differences(swung, z) atol = 1e-6
        @test J[3, :, 1] ≈ [2z[1], 0, 0.2z[3], 0, 0]
    end
    @test describe(named).state == ["position", "velocity"]
    @test describe(named).parameters[1].unit == "kg"
    @test describe(vector).start_box.high == [1.0, 0.5]
end

@testset "what it sees, when it ends, and what depends on time" begin
    driven = ODEProblem((dx, x, p, t) -> (dx[1] = p[1] + cos(t); nothing), [0.5], (0.0, 1.0), [0.0])
    S = simulator(
        remake(driven; tspan = (3.0, 4.0)); inputs = [1 => (-1.0, 1.0)], timed = true, cost = (x, p, t) -> x[1] * t, dt = 0.5, episode_steps = 4, box = Box([2.0]),
        observation = (x, p, t) -> (x[1], sin(t)), observation_names = ["x", "phase"], done = (x, p, t) -> x[1] > 1,
    )
    d, batch = describe(S), open_simulator(S)
    @test d.state == ["x1", "time"] && d.state_box.high == [2.0, 5.0] && d.start_box.low == [0.5, 3.0] == d.start_box.high
    y, J, _ = ask(batch, INTERVAL, [0.2; 0.7;;], fill(0.1, 1, 1), Float64[])
    @test y[:, 1] ≈ [0.2 + 0.05 + sin(1.2) - sin(0.7), 1.2, 0.14] atol = 1e-8
    @test J[1, :, 1] ≈ [1, cos(1.2) - cos(0.7), 0.5] atol = 1e-6
    seen = ask(batch, OBSERVATION, [0.2 1.2; 0.7 0.7], zeros(1, 2), Float64[]; jacobian = false)[1]
    @test seen == [0.2 1.2; sin(0.7) sin(0.7)]
    ended = ask(batch, DONE, [0.2 1.2; 0.7 0.7], zeros(1, 2), Float64[]; jacobian = false)[1]
    @test ended == [0.0 1.0]
end

# A voltage source, a resistor and a diode in series with a capacitor; p = [capacity, resistance, source].  The current is an
# algebraic variable, and so is the voltage of the diode: source = capacitor + resistance * current + diode.
function charging!(out, x, p, t)
    voltage, current, diode = x
    out[1] = current / p[1]
    out[2] = p[3] - voltage - p[2] * current - diode
    out[3] = 1e-3 * expm1(diode / 0.2) - current
end
charged = ODEProblem(
    ODEFunction(charging!; mass_matrix = Diagonal([1.0, 0.0, 0.0])), [0.0, 0.0, 0.0], (0.0, 1.0), [0.5, 2.0, 1.0],
)

"The same with the algebraic variables found by bisection: dvoltage/dt = current / capacity."
function current_at(voltage, resistance, source)
    low, high = -2e-3, 5.0
    for _ in 1:200
        middle = (low + high) / 2
        middle <= -1e-3 || resistance * middle + 0.2 * log1p(middle / 1e-3) < source - voltage ? (low = middle) : (high = middle)
    end
    return (low + high) / 2
end
function charging(z, dt = 0.3; steps = 300)
    v, source, capacity, resistance = z
    rate(v) = current_at(v, resistance, source) / capacity
    h = dt / steps
    for _ in 1:steps
        a = rate(v); b = rate(v + h / 2 * a); c = rate(v + h / 2 * b); d = rate(v + h * c)
        v += h / 6 * (a + 2b + 2c + d)
    end
    return v
end

@testset "algebraic equations, by $(nameof(typeof(scheme)))" for scheme in (Rosenbrock(reltol = 1e-10, abstol = 1e-10), Adaptive(Rodas5P(); reltol = 1e-10, abstol = 1e-10))
    S = simulator(
        charged; inputs = [3 => (-5.0, 5.0)], parameters = [1 => :capacity, 2 => :resistance], cost = (x, p, t) -> x[2], dt = 0.3,
        episode_steps = 10, box = Box([2.0, 2.0, 2.0]), state = ["voltage", "current", "diode"], scheme,
    )
    batch = open_simulator(S)
    for (voltage, source) in ((0.1, 1.5), (0.8, 3.0), (0.5, 0.2))
        # Algebraic variables of the start are guesses: what comes out does not depend on them.
        x, u = [voltage voltage; 0.0 0.4; 0.0 -0.1], [source source]
        y, J, failures = ask(batch, INTERVAL, x, u, [0.5, 2.0])
        @test failures == 0
        z = [voltage, source, 0.5, 2.0]
        @test y[1, 1] ≈ charging(z) atol = 1e-8
        @test y[:, 1] ≈ y[:, 2] atol = 1e-9
        @test y[2, 1] ≈ current_at(y[1, 1], 2.0, source) atol = 1e-8
        @test y[4, 1] ≈ current_at(voltage, 2.0, source) atol = 1e-9  # the cost, at the start
        @test J[1, [1, 4, 5, 6], 1] ≈ vec(differences(charging, z; h = 1e-4)) atol = 1e-5
        @test all(abs.(J[:, 2:3, :]) .< 1e-7)
        @test J[4, [1, 4, 6], 1] ≈ vec(differences(q -> [current_at(q[1], q[3], q[2])], [voltage, source, 2.0])) atol = 1e-6
    end
    # Where the algebraic equations cannot be solved, the rollout is NaN and counted.
    @test ask(batch, INTERVAL, fill(NaN, 3, 1), ones(1, 1), [0.5, 2.0]; jacobian = false)[3] == 1
end

@testset "an event beside an algebraic equation" begin
    # A mass falls against a damper, whose force is algebraic, and bounces.
    function falling!(out, x, p, t)
        out[1] = x[2]
        out[2] = p[2] - p[1] + x[3]
        out[3] = x[3] + 0.5 * x[2]
    end
    make(mass, f, n; extra...) = simulator(
        ODEProblem(ODEFunction(f; mass_matrix = mass), zeros(n), (0.0, 1.0), [9.81, 0.0]);
        inputs = [2 => (-1.0, 1.0)], parameters = [1 => :g], cost = (x, p, t) -> x[1], dt = 0.7, episode_steps = 5, box = Box(ones(n)),
        events = (event((x, u, p) -> x[1], (x, u, p) -> (x[2] = -0.8 * x[2]); direction = :falling),), extra...,
    )
    function plain!(dx, x, p, t)
        dx[1] = x[2]
        dx[2] = p[2] - p[1] - 0.5 * x[2]
    end
    tight = Adaptive(Rodas5P(); reltol = 1e-11, abstol = 1e-11)
    implicit, explicit = make(Diagonal([1.0, 1.0, 0.0]), falling!, 3; scheme = tight), make(I, plain!, 2; scheme = tight)
    y, J, failures = ask(open_simulator(implicit), INTERVAL, [1.2; -0.3; 9.0;;], fill(0.2, 1, 1), [9.81])
    z, K, _ = ask(open_simulator(explicit), INTERVAL, [1.2; -0.3;;], fill(0.2, 1, 1), [9.81])
    @test failures == 0
    @test y[1:2, 1] ≈ z[1:2, 1] atol = 1e-9
    @test y[3, 1] ≈ -0.5 * y[2, 1] atol = 1e-9
    @test J[1:2, [1, 2, 4, 5], 1] ≈ K[1:2, :, 1] atol = 1e-7
    @test J[3, [1, 2, 4, 5], 1] ≈ -0.5 * K[2, :, 1] atol = 1e-7
end

@testset "mass matrices that are a number, a diagonal, or none" begin
    make(M) = simulator(
        ODEProblem(ODEFunction(pushed!; mass_matrix = M), [1.0, 0.0], (0.0, 1.0), [2.0, 3.0, 0.0]); common..., inputs = [3 => (-1.0, 1.0)],
        parameters = [1 => :mass, 2 => :stiffness], scheme = Rosenbrock(reltol = 1e-11, abstol = 1e-12),
    )
    x, u, p = [0.7; -0.4;;], fill(0.5, 1, 1), [2.5, 3.5]
    next(M) = ask(open_simulator(make(M)), INTERVAL, x, u, p)[1][1:2, 1]
    @test next(I) ≈ swung([0.7, -0.4, 0.5, 2.5, 3.5]) atol = 1e-8
    # Both rates halved: half of the time.
    @test next(2I) ≈ swung([0.7, -0.4, 0.5, 2.5, 3.5], 0.15) atol = 1e-8
    @test next(2I) == next(Diagonal([2.0, 2.0]))
end

@testset "in a file, by the name of the constant or of the type" begin
    file = joinpath(mktempdir(), "spring.jl")
    write(file, """
    import DiffSimEnvs: Box, simulator
    import DiffSimEnvs.SciMLBase: ODEProblem
    problem = ODEProblem((dx, x, p, t) -> (dx[1] = p[1] - x[1]; nothing), [0.5], (0.0, 1.0), [0.0])
    const Tank = simulator(problem; name = :Level, inputs = [1 => (0.0, 1.0)], cost = (x, p, t) -> x[1]^2, dt = 0.1, episode_steps = 5, box = Box([1.0]))
    """)
    for name in ("Tank", "Level")
        S = DiffSimEnvs.load_simulator(file, name)
        @test Base.invokelatest(describe, S).state == ["x1"]
        @test Base.invokelatest(DiffSimEnvs.python_name, S) == "julia:$(realpath(file)):Level"
    end
    @test_throws "problem of spring.jl is a ODEProblem, no simulator; a model becomes one by: const Name = simulator(problem;" DiffSimEnvs.load_simulator(file, "problem")
    @test_throws "it defines: Tank" DiffSimEnvs.load_simulator(file, "Pool")
end

@testset "a step costs what it costs by hand: nothing is allocated" begin
    for S in (
        simulator(spring; common..., inputs = [3 => (-1.0, 1.0)], parameters = [1 => :mass, 2 => :stiffness], scheme = Fixed(DiffSimEnvs.Tsit5(); steps = 20)),
        simulator(
            ODEProblem((dx, x, p, t) -> (dx[1] = x[2]; dx[2] = (p.force - p.stiffness * x[1]) / p.mass; nothing), [1.0, 0.0], (0.0, 1.0), (mass = 2.0, stiffness = 3.0, force = 0.0));
            common..., inputs = [:force => (-1.0, 1.0)], parameters = [:mass => :mass], scheme = Fixed(DiffSimEnvs.Tsit5(); steps = 20),
            cost = (x, p, t) -> x[1]^2 + p.force^2,
        ),
    )
        batch = open_simulator(S)
        function bytes(count)
            x, u, p = sample(batch, count)
            results = zeros(2, count), zeros(1, count), zeros(3, columns(batch, true), count)
            evaluate!(batch, INTERVAL, x, u, p, results..., true)
            batch.paces |> empty!  # one task
            return @allocated evaluate!(batch, INTERVAL, x, u, p, results..., true)
        end
        @test bytes(64) - bytes(2) <= 62 * 64
    end
end

@testset "what it cannot make a simulator of, it says" begin
    for (problem, change, text) in (
        (spring, (; inputs = [4 => (-1.0, 1.0)]), "inputs: 4 is no place in the problem's p, which has [1, 2, 3]"),
        (spring, (; inputs = []), "at least one input"),
        (spring, (; parameters = [3 => :force]), "parameters: place 3 of the problem's p is given twice"),
        (spring, (; state = ["x"]), "1 names of states are given, the problem has 2"),
        (spring, (; observation = (x, p, t) -> x), "`observation_names` are given together"),
        (ODEProblem(pushed!, [1.0, 0.0], (0.0, 1.0), nothing), (;), "the problem's p is a Nothing"),
        (
            ODEProblem(pushed!, [1.0, 0.0], (0.0, 1.0), [2.0, 3.0, 0.0]; callback = ContinuousCallback((x, t, i) -> x[1], i -> nothing)), (;),
            "has a callback, which a gradient would not see",
        ),
        (spring, (; inputs = [3 => 1.0]), "inputs: … => (low, high) is needed, got 3 => 1.0"),
        (spring, (; inputs = [3 => (1.0, 2.0, 3.0)]), "inputs: … => (low, high) is needed"),
        (spring, (; inputs = [3 => (1.0, -1.0)]), "inputs: low <= high"),
        (spring, (; box = [1.0, 2.0]), "box: a Box is needed, got [1.0, 2.0]"),
        (spring, (; state = ["a", "a"]), "state: a name is given twice: a, a"),
        (spring, (; parameters = [1 => :a, 2 => :a]), "parameters: a name is given twice"),
        (spring, (; cost = 1), "cost: a function (x, p, t) is needed, got 1"),
        (spring, (; cost = (x, p, t) -> [x[1]]), "cost: a number is needed"),
        (spring, (; cost = (x, p, t) -> x[1] * t), "depends on time (cost does): give `timed = true`"),
        (spring, (; done = (x, p, t) -> x[1]), "done: true or false is needed"),
        (spring, (; observation = (x, p, t) -> (x[1], p[3]), observation_names = ["x", "force"]), "observation: it depends on an input"),
        (ODEProblem((dx, x, p, t) -> (dx .= cos(t); nothing), [1.0, 0.0], (0.0, 1.0), zeros(3)), (;), "depends on time (its function does)"),
        (ODEProblem((x, p, t) -> [x[2]], [1.0, 0.0], (0.0, 1.0), zeros(3)), (;), "returns 1 rates, the state has 2"),
        (ODEProblem(pushed!, ComplexF64[1.0, 0.0], (0.0, 1.0), zeros(3)), (;), "a vector of real numbers is needed"),
        (SecondOrderODEProblem((a, v, x, p, t) -> (a .= 0), [1.0], [0.0], (0.0, 1.0), zeros(3)), (;), "write it as one first-order ODEProblem"),
        (SplitODEProblem(pushed!, pushed!, [1.0, 0.0], (0.0, 1.0), zeros(3)), (;), "write it as one first-order ODEProblem"),
        (
            ODEProblem(ODEFunction(pushed!; mass_matrix = [1.0 0.5; 0.0 1.0]), [1.0, 0.0], (0.0, 1.0), [2.0, 3.0, 0.0]), (;),
            "mass matrix is not diagonal",
        ),
    )
        @test_throws text simulator(problem; common..., inputs = [3 => (-1.0, 1.0)], change...)
    end
    @test_throws "not a String" simulator("model.fmu")
end
