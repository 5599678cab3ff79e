#include "server/core/plan.h"

namespace nibble::core {

SpecFunctions RealSpecFunctions() { return {spec::PlanTotals, spec::ResolveTrainSpec,
                                            spec::ChooseRecompute}; }

}  // namespace nibble::core
