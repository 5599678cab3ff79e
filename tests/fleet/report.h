// Rows of cells as text, and the pieces that plots are made of.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace nibble::fleet {

using Cells = std::vector<std::string>;

// The first row is the header; all are of one length.
std::string RowsText(const std::vector<Cells>& rows);
std::string RowsMarkdown(const std::vector<Cells>& rows);

// The opening of a picture of that size, with a title; "</svg>\n" ends it.
std::string SvgHead(int width, int height, const std::string& title);
std::string SvgLabel(double x, double y, const std::string& text, const char* anchor, int size = 12);
// Of a grid.
std::string SvgLine(double x1, double y1, double x2, double y2);
// In the color of the policy of that number.
std::string SvgCurve(const std::vector<std::pair<double, double>>& points, size_t policy, int width);
const char* SvgColor(size_t policy);

}  // namespace nibble::fleet
