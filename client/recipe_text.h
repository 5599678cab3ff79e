// Recipes written by us: one with every default filled in, and the schema of all of them. Pure.
#pragma once

#include <string>

#include "client/recipe.h"
#include "nibble/v1/job.pb.h"

namespace nibble::client {

// `effective` is what the server made of `recipe`; what is decided by the data stands as a comment.
std::string RecipeText(const Recipe& recipe, const v1::JobSpec& effective);
// JSON Schema (draft 2020-12) of the keys we know; refused ones are not in it.
std::string RecipeSchema();

}  // namespace nibble::client
