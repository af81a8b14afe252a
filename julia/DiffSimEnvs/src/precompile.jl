succeed(number, code) = code == 0 || error(get(ERRORS, number, "failures in the start box"))

# One gradient of each simulator here, so that a first one elsewhere needs no compiler.
@compile_workload begin
    for S in (Pendulum, CartpoleSwingup, Reactor, Trebuchet, ThreeBody)
        text, name = zeros(UInt8, 10_000), string(nameof(S))
        GC.@preserve text name c_open(Cstring(pointer("")), Cstring(pointer(name)), pointer(text), 10_000)
        number = length(OPENED)
        batch = OPENED[number]
        for T in (Float32, Float64)
            n, m, k = batch.sizes
            d = batch.description
            x = T.(repeat((d.start_box.low .+ d.start_box.high) ./ 2, 1, 2))
            u = zeros(T, m, 2)
            p = T[q.value for q in d.parameters]
            for quantity in instances(Quantity), derivatives in 0:2
                quantity === DONE && derivatives > 0 && continue
                q, r = output_sizes(batch, quantity)
                first, second = zeros(T, q, 2), zeros(T, r, 2)
                jacobian = derivatives == 0 ? zeros(0, 0, 0) : zeros(q + r, columns(batch, derivatives == 2), 2)
                GC.@preserve x u p first second jacobian begin
                    succeed(number, c_evaluate(number, Int(quantity), Int(T === Float32), 2, derivatives, 1, map(v -> Ptr{Cvoid}(pointer(v)), (x, u, p, first, second, jacobian))...))
                    derivatives == 0 && continue
                    by = (zeros(T, n, 2), zeros(T, m, 2), zeros(T, k, 2))
                    GC.@preserve by succeed(number, c_pull(number, Int(quantity), Int(T === Float32), 2, derivatives, map(v -> Ptr{Cvoid}(pointer(v)), (jacobian, first, second, by...))...))
                end
            end
            for derivatives in 0:2
                controls, states, costs = zeros(T, m, 2, 2), zeros(T, n, 2, 3), zeros(T, 1, 2, 2)
                states[:, :, 1] .= x
                jacobian = derivatives == 0 ? zeros(0, 0, 0, 2) : zeros(n + 1, columns(batch, derivatives == 2), 2, 2)
                GC.@preserve controls p states costs jacobian begin
                    succeed(number, c_window(number, Int(T === Float32), 2, 2, derivatives, 1, map(v -> Ptr{Cvoid}(pointer(v)), (controls, p, states, costs, jacobian))...))
                    derivatives == 0 && continue
                    by = (zeros(T, n, 2), zeros(T, m, 2, 2), zeros(T, k, 2))
                    GC.@preserve by succeed(number, c_pull_window(number, Int(T === Float32), 2, 2, derivatives, map(v -> Ptr{Cvoid}(pointer(v)), (jacobian, states, costs, by...))...))
                end
            end
        end
    end
    empty!(OPENED)
    entry_points()
end
