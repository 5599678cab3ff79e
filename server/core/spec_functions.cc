#include "server/core/plan.h"

namespace nibble::core {

SpecFunctions RealSpecFunctions() { return {spec::CompilePlan, spec::ResolveTrainSpec,
                                            spec::ChooseRecompute}; }

}  // namespace nibble::core
