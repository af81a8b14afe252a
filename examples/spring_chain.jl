# Two masses on springs, put together from ModelingToolkit's standard library, as a simulator:
#
#     diffsim train julia:examples/spring_chain.jl:SpringChain --out runs/chain
#
# Needs ModelingToolkit and ModelingToolkitStandardLibrary in the project that Julia uses.
using DiffSimEnvs, ModelingToolkit
using ModelingToolkit: t_nounits as t
using ModelingToolkitStandardLibrary.Mechanical.TranslationalModelica: Fixed, Force, Mass, Spring, SpringDamper

@named wall = Fixed()
@named first_spring = SpringDamper(c = 3.0, d = 0.2)
@named first_mass = Mass(m = 1.5)
@named second_spring = Spring(c = 2.0)
@named second_mass = Mass(m = 0.8)
@named push = Force()
joints = [
    connect(wall.flange, first_spring.flange_a),
    connect(first_spring.flange_b, first_mass.flange_a),
    connect(first_mass.flange_b, second_spring.flange_a),
    connect(second_spring.flange_b, second_mass.flange_a),
    connect(second_mass.flange_b, push.flange),
]
@named chain = System(joints, t; systems = [wall, first_spring, first_mass, second_spring, second_mass, push])

# A weak force on the last mass has to stop both.
const SpringChain = simulator(
    chain;
    name = :SpringChain,
    inputs = [push.f.u => (-1.0, 1.0)],
    cost = second_mass.s^2 + 0.1 * second_mass.v^2 + 0.01 * push.f.u^2,
    dt = 0.1,
    episode_steps = 100,
    box = [first_mass.s => (-1.0, 1.0), first_mass.v => (-1.5, 1.5), second_mass.s => (-1.5, 1.5), second_mass.v => (-2.0, 2.0)],
    start = [first_mass.s => 0.0, first_mass.v => (-1.0, 1.0), second_mass.s => 0.0, second_mass.v => (-1.0, 1.0)],
    parameters = [first_mass.m, second_mass.m, first_spring.c, second_spring.c],
)
